"""Micro-batches of a few sizes: what is laid out is filled up with idle tokens, so that its shapes come again.

Idle tokens are a text of their own, which no other sees and no loss is computed of: losses and gradients stay what they
were. On a GPU the passes over such a micro-batch can be recorded and played again (`peftkit.training.replays`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.engine.packed_batch import PackedBatch
from peftkit.kernels.tree import Block, Tree
from peftkit.kernels.varlen_attention import Copied, Runs, runs, with_runs

TOKENS, KEYS, PREDICTIONS, RUNS, SHARED = 128, 256, 128, 16, 128
"""Multiples of these are the numbers of tokens, keys, predictions, runs, and keys that runs have in common."""


@dataclass(frozen=True)
class Steady:
    """A micro-batch that is filled up, and all the tensors that its passes read."""

    laid: PackedBatch
    runs: Runs

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What differs between two micro-batches of one shape."""
        laid, told = self.laid, self.runs
        assert laid.weights is not None
        inputs = laid.inputs["input_ids"], laid.inputs["position_ids"]
        return *inputs, laid.sources, laid.targets, laid.weights, told.queries, told.keys, *_tensors(told.copied)

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """What two micro-batches have alike whose passes are the same work."""
        return *(tuple(tensor.shape) for tensor in self.tensors), self.runs.longest

    def copy_from(self, other: Steady) -> None:
        """Take the values of another micro-batch of the same shape."""
        for mine, given in zip(self.tensors, other.tensors, strict=True):
            mine.copy_(given, non_blocking=True)

    def clone(self) -> Steady:
        """Return one with memory of its own."""
        ids, positions, sources, targets, weights, queries, keys, *more = (tensor.clone() for tensor in self.tensors)
        tree = Tree(ids[0], positions[0], [], [])
        inputs = {"input_ids": ids, "position_ids": positions}
        told = Runs(queries, keys, self.runs.longest, Copied(*more) if more else None)
        return _steady(PackedBatch(inputs, tree, sources, targets, weights), told)


def steady(laid: PackedBatch, device: torch.device) -> Steady | None:
    """Fill up flat tokens on the host and bring them to `device`; None for padded rows."""
    tree = laid.tree
    if tree is None:
        return None
    count, idle = len(tree.ids), -len(tree.ids) % TOKENS or TOKENS
    blocks = [*tree.blocks, Block(count, idle, np.arange(count, count + idle))]
    ids, positions = _filled(tree.ids, idle), torch.cat([tree.positions, torch.arange(idle)])
    more = -len(laid.targets) % PREDICTIONS
    weights = torch.ones(len(laid.targets)) if laid.weights is None else laid.weights
    filled = PackedBatch(
        {"input_ids": ids[None], "position_ids": positions[None]},
        Tree(ids, positions, tree.rows, blocks),
        _filled(laid.sources, more, count + idle - 1),
        _filled(laid.targets, more),
        _filled(weights, more),
    ).to(device)
    return _steady(filled, _full(runs(blocks, 0, torch.device("cpu")), count + idle - 1, device))


def _steady(laid: PackedBatch, told: Runs) -> Steady:
    assert laid.tree is not None
    with_runs(laid.tree, told)
    return Steady(laid, told)


def _full(told: Runs, idle: int, device: torch.device) -> Runs:
    """Fill up runs, the last of which is that of the idle tokens: it sees the last of them, `idle`, more than once."""
    keys, copied, longest = told.keys.clone(), told.copied, told.longest
    if copied is not None:
        more = -len(copied.index) % KEYS
        keys[-1] += more
        longest = longest[0], max(longest[1], int(keys[-1] - keys[-2]))
        copied = _full_copies(copied, more, int(keys[-2]), idle).to(device)
    edges = [_filled(edge, -len(edge) % RUNS, int(edge[-1])).to(device) for edge in (told.queries, keys)]
    return Runs(edges[0], edges[1], (_up(longest[0], TOKENS), _up(longest[1], TOKENS)), copied)


def _full_copies(copied: Copied, more: int, before: int, idle: int) -> Copied:
    """Put `more` keys in front of the idle tokens' own, at `before`; no gradient comes back to them."""
    index = torch.cat([copied.index[:before], copied.index.new_full((more,), idle), copied.index[before:]])
    firsts, places = (x + more * (x >= before) for x in (copied.firsts, copied.places))
    rows = -len(copied.shared) % SHARED
    columns = 2 ** (places.shape[1] - 1).bit_length() - places.shape[1] if places.shape[1] else 1
    places = F.pad(places, (0, columns, 0, rows), value=len(index) - 1)
    present = F.pad(copied.present, (0, columns, 0, rows))
    present[len(copied.shared) :, 0] = 1
    return Copied(index, firsts, _filled(copied.shared, rows, idle), places, present)


def _tensors(copied: Copied | None) -> Iterator[Tensor]:
    return iter(()) if copied is None else (getattr(copied, field.name) for field in fields(copied))


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def _filled(x: Tensor, count: int, value: int = 0) -> Tensor:
    return torch.cat([x, x.new_full((count,), value)])
