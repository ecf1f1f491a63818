"""Losses of micro-batches for tests: by an engine, and plainly by the model itself."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.data.batches import Batch
from peftkit.engine.engine import Arrangement, Engine
from peftkit.engine.packed_batch import PackedBatch
from peftkit.objectives.cross_entropy import CrossEntropy

WHOLE = Arrangement(flat=False, share=False, apart=False)


def loss_of(engine: Engine, packed: PackedBatch, smoothing: float = 0.0) -> Tensor:
    """Sum the cross-entropies of a packed micro-batch, within the engine's `running`."""
    return CrossEntropy(label_smoothing=smoothing).loss(engine.forward(packed), packed).sum


def whole_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Sum the cross-entropies of a batch by an engine that leaves the model whole."""
    engine = Engine(model, WHOLE)
    return loss_of(engine, engine.pack(batch))


def plain_loss(model: Any, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Sum the cross-entropies of a batch from all logits of the model."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    targets = batch.labels[:, 1:].flatten()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="sum", label_smoothing=smoothing)
