"""Micro-batches of a few sizes: what is laid out is filled up with idle tokens, so that its shapes come again.

Idle tokens are a text of their own, which no other sees and no loss is computed of: losses and gradients stay what they
were. On a GPU the passes over such a micro-batch can be recorded and played again (`peftkit.training.replays`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peftkit.engine.laid import Laid
from peftkit.ports.tree import Block, Tree
from peftkit.ports.varlen_attention import Runs, runs, with_runs

TOKENS, PREDICTIONS, RUNS = 128, 64, 8
"""Multiples of these are the numbers of tokens, predictions and runs."""


@dataclass(frozen=True)
class Steady:
    """A micro-batch that is filled up, and all the tensors that its passes read."""

    laid: Laid
    runs: Runs

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What differs between two micro-batches of one shape."""
        laid = self.laid
        assert laid.weights is not None
        inputs = (laid.inputs["input_ids"], laid.inputs["position_ids"])
        return *inputs, laid.sources, laid.targets, laid.weights, self.runs.queries, self.runs.keys

    @property
    def shape(self) -> tuple[int, ...]:
        """What two micro-batches have alike whose passes are the same work."""
        return *(tensor.shape[-1] for tensor in self.tensors), *self.runs.longest

    def copy_from(self, other: Steady) -> None:
        """Take the values of another micro-batch of the same shape."""
        for mine, given in zip(self.tensors, other.tensors, strict=True):
            mine.copy_(given, non_blocking=True)

    def clone(self) -> Steady:
        """Return one with memory of its own."""
        ids, positions, sources, targets, weights, queries, keys = (tensor.clone() for tensor in self.tensors)
        tree = Tree(ids[0], positions[0], [], [])
        inputs = {"input_ids": ids, "position_ids": positions}
        return _steady(Laid(inputs, tree, sources, targets, weights), Runs(queries, keys, self.runs.longest, None, []))


def steady(laid: Laid, device: torch.device) -> Steady | None:
    """Fill up flat tokens on the host and bring them to `device`; None where paths have keys in common."""
    tree = laid.tree
    if tree is None:
        return None
    count, idle = len(tree.ids), -len(tree.ids) % TOKENS or TOKENS
    blocks = [*tree.blocks, Block(count, idle, np.arange(count, count + idle))]
    found = runs(blocks, 0, torch.device("cpu"))
    if found.index is not None:
        return None
    ids, positions = _filled(tree.ids, idle), torch.cat([tree.positions, torch.arange(idle)])
    more = -len(laid.targets) % PREDICTIONS
    weights = torch.ones(len(laid.targets)) if laid.weights is None else laid.weights
    filled = Laid(
        {"input_ids": ids[None], "position_ids": positions[None]},
        Tree(ids, positions, tree.rows, blocks),
        _filled(laid.sources, more, count + idle - 1),
        _filled(laid.targets, more),
        _filled(weights, more),
    ).to(device)
    edges = [_filled(edge, -len(edge) % RUNS, int(edge[-1])).to(device) for edge in (found.queries, found.keys)]
    queries, keys = (-(-size // TOKENS) * TOKENS for size in found.longest)
    return _steady(filled, Runs(edges[0], edges[1], (queries, keys), None, []))


def _steady(laid: Laid, told: Runs) -> Steady:
    assert laid.tree is not None
    with_runs(laid.tree, told)
    return Steady(laid, told)


def _filled(x: Tensor, count: int, value: int = 0) -> Tensor:
    return torch.cat([x, x.new_full((count,), value)])
