"""The training loss: the sum of token cross-entropies in fp32, with no logits at positions that train nothing."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORED = -100


def sum_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum the cross-entropies of `logits` [B, T, V] against `targets` [B, T] where those are not -100; 0 if none is."""
    return functional.cross_entropy(
        logits.flatten(0, 1).float(),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=smoothing,
    )


def accepts_positions(model: nn.Module) -> bool:
    """Say whether the model computes logits at chosen positions only (transformers' `logits_to_keep`)."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def batch_loss(model: nn.Module, batch: Any, device: torch.device, smoothing: float = 0.0) -> Tensor:
    """Sum the next-token cross-entropies of a batch with unshifted `labels` [B, T]: position t predicts label t + 1.

    Where the model allows, logits are computed only at positions that at least one row of the batch trains on.
    """
    return loss_at(model, batch, trained_positions(batch.labels), device, smoothing)


def trained_positions(labels: Tensor) -> Tensor:
    """Return the positions [P] of `labels` [B, T] whose next label at least one row trains on; the first if none is."""
    positions = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
    return positions if len(positions) else torch.arange(labels.shape[1] - 1)[:1]


def loss_at(model: nn.Module, batch: Any, positions: Tensor, device: torch.device, smoothing: float = 0.0) -> Tensor:
    """Sum the next-token cross-entropies of a batch at `positions` [P] alone."""
    targets = batch.labels[:, 1:][:, positions].to(device)
    inputs: dict[str, Any] = {"input_ids": batch.input_ids.to(device), "use_cache": False}
    inputs["attention_mask"] = batch.attention_mask.to(device)
    positions = positions.to(device)
    if accepts_positions(model):
        logits = model(**inputs, logits_to_keep=positions).logits
    else:
        logits = model(**inputs).logits[:, positions]
    return sum_cross_entropy(logits, targets, smoothing)
