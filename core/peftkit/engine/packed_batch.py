"""A padded micro-batch laid out as the engine computes it: what predicts, what it predicts, and the tree of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftkit.kernels.tree import Tree, grow

IGNORED = -100


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch: inputs of the body, and P predictions."""

    inputs: dict[str, Tensor]
    """What the body is called with: flat tokens [1, N] and their positions, or padded rows [B, T] and their mask."""
    tree: Tree | None
    """Along which the flat tokens stand; None for padded rows."""
    sources: Tensor
    """[P] long: which of the N or B * T hidden states predict."""
    targets: Tensor
    """[P] long: the ids that they predict."""
    weights: Tensor | None = None
    """[P]: how many rows train on the prediction; None where each is one row's."""

    def to(self, device: torch.device) -> PackedBatch:
        """Return it with its tensors on `device`."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        tree = None if self.tree is None else self.tree.to(device)
        weights = None if self.weights is None else self.weights.to(device)
        return PackedBatch(inputs, tree, self.sources.to(device), self.targets.to(device), weights)


def flat(batch: Any, share: bool) -> PackedBatch:
    """Lay a batch out along a tree; what rows have in common, predictions included, is there once with `share`."""
    lengths = batch.attention_mask.sum(1).tolist()
    rows = [row[:length] for row, length in zip(batch.input_ids.tolist(), lengths, strict=True)]
    tree = grow(rows, share)
    sources, targets = [], []
    for places, row in zip(tree.rows, batch.labels.numpy(), strict=True):
        predicted = row[1 : len(places)]
        at = np.flatnonzero(predicted != IGNORED)
        sources.append(places[at])
        targets.append(predicted[at])
    pairs = np.stack([np.concatenate(sources), np.concatenate(targets)])
    pairs, counts = np.unique(pairs, axis=1, return_counts=True)
    weights = None if (counts == 1).all() else torch.from_numpy(counts.astype(np.float32))
    found = torch.from_numpy(np.ascontiguousarray(pairs))
    return PackedBatch(
        {"input_ids": tree.ids[None], "position_ids": tree.positions[None]}, tree, found[0], found[1], weights
    )


def padded(batch: Any) -> PackedBatch:
    """Leave the rows of a batch as they are, padded to the longest."""
    at = (batch.labels[:, 1:] != IGNORED).nonzero()
    sources = at[:, 0] * batch.labels.shape[1] + at[:, 1]
    targets = batch.labels[:, 1:][at[:, 0], at[:, 1]]
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return PackedBatch(inputs, None, sources, targets)
