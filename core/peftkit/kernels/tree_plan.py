"""How attention goes over the blocks of a tree: one by one, or padded to buckets of like shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.kernels.block_attention import Span, mask_of, spans
from peftkit.kernels.tree import QUERIES, Block, Tree, goes_on

WASTE = 1.5
"""How many times its own scores a block may take where it is padded to the shape of others."""
SMALL = 4096
"""Scores so few that padding by that many costs less than another product."""
STEP = 16
"""The kernel for processors takes up to three times as long in bf16 where keys are no multiple of this many."""


@dataclass(frozen=True)
class Bucket:
    """Blocks of like shape padded to one: S blocks of Lq queries and K keys."""

    queries: Tensor
    """[S, Lq] long: positions in the flat tokens, 0 on padding."""
    keys: Tensor
    """[S, K] long: positions in the flat tokens, 0 on padding."""
    hidden: Tensor
    """[S, 1, Lq, K] bool: True where a query may not look; to each query at least one key is open."""
    real: Tensor | None
    """[S, 1, Lq, 1] of 1, and 0 for queries that are padding; None where none is."""


@dataclass(frozen=True)
class Run:
    """Queries that follow each other on one path, and where the keys of that path ahead of them stand."""

    start: int
    length: int
    ahead: slice | Tensor | None
    """Positions among the flat tokens; None where there are none."""
    count: int
    """How many those are."""
    spare: int
    """How many keys that nobody may see follow the run's own, so that their number suits the kernel."""


class Plan:
    """What attention along a tree reads, each part made when it is asked for: which, its function says."""

    def __init__(self, tree: Tree, window: int | None):
        self.tree, self.window, self.device = tree, window, tree.ids.device
        self.count = len(tree.ids)
        self._runs: dict[int, list[Run]] = {}
        self._masks: dict[tuple[int, int, int, int, torch.dtype], Tensor] = {}

    def runs(self, first: int) -> list[Run]:
        """Return the blocks, those that go on where another ended as one, behind `first` keys in front of all.

        A run that sees all tokens up to its own, and no others, needs no mask and may have any length.
        """
        if first not in self._runs:
            joined = _joined(self.tree.blocks, first > 0 or self.window is not None)
            self._runs[first] = [_run(blocks, first) for blocks in joined]
        return self._runs[first]

    def mask(self, run: Run, first: int, dtype: torch.dtype) -> tuple[bool, Tensor | None]:
        """Return whether the queries of a run see its own tokens in order, or else what is added to their scores.

        That is 0 or -inf, [length, first + count + length + spare] in `dtype`, the same tensor for the same shape.
        """
        count = run.count + run.length
        if not first and not run.count and (self.window is None or count <= self.window):
            return True, None
        shape = run.length, count, run.spare, first, dtype
        if shape not in self._masks:
            mask = F.pad(mask_of(run.length, count, self.window), (0, run.spare), value=-torch.inf)
            self._masks[shape] = F.pad(mask, (first, 0)).to(dtype)
        return False, self._masks[shape]

    @cached_property
    def spans(self) -> list[Span]:
        """The blocks, one by one."""
        return spans(self.tree.blocks, self.window)

    @cached_property
    def once(self) -> bool:
        """Whether each token is a key of one block alone."""
        return sum(len(block.keys) for block in self.tree.blocks) == self.count

    @cached_property
    def groups(self) -> list[list[Block]]:
        """The blocks of each bucket."""
        return _alike(self.tree.blocks)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Blocks of like shape, padded."""
        return [_bucket(blocks, self.window, self.device) for blocks in self.groups]

    @cached_property
    def answers(self) -> Tensor:
        """[N] long: the place of each token among the queries of all buckets, padding included."""
        return _places(self.groups, self.count, keys=False).to(self.device)

    @cached_property
    def origins(self) -> Tensor | None:
        """[N] long: the same among the keys, where each token is a key of one block alone; else None."""
        return _places(self.groups, self.count, keys=True).to(self.device) if self.once else None


def plan_of(tree: Tree, window: int | None = None) -> Plan:
    """Return what attention reads, made once for each sliding window (None: the whole path is seen)."""
    plans: dict[int | None, Plan] = tree.__dict__.setdefault("plans", {})
    if window not in plans:
        plans[window] = Plan(tree, window)
    return plans[window]


def _joined(blocks: Sequence[Block], masked: bool) -> list[list[Block]]:
    """Put blocks together that go on where the one before ended; as many as `QUERIES` allows where there are masks."""
    found: list[list[Block]] = []
    for block in blocks:
        before = found[-1] if found else []
        free = not masked and bool(before) and before[0].length == len(before[0].keys)
        fits = free or block.length + sum(part.length for part in before) <= QUERIES
        if before and fits and goes_on(before[-1].keys, block):
            before.append(block)
        else:
            found.append([block])
    return found


def _run(blocks: Sequence[Block], first: int) -> Run:
    head, length = blocks[0], sum(block.length for block in blocks)
    count = len(head.keys) - head.length
    ahead: slice | Tensor | None = None
    if count:
        low, high = int(head.keys[0]), int(head.keys[count - 1])
        ahead = slice(low, high + 1) if high - low == count - 1 else torch.from_numpy(head.keys[:count])
    return Run(head.start, length, ahead, count, -(first + count + length) % STEP)


def _alike(blocks: Sequence[Block]) -> list[list[Block]]:
    """Put blocks together whose common shape wastes little."""
    groups: list[list[Block]] = []
    queries = keys = 0
    for block in sorted(blocks, key=lambda block: (len(block.keys), block.length), reverse=True):
        own = block.length * len(block.keys)
        if not groups or max(queries, block.length) * keys > max(WASTE * own, own + SMALL):
            groups.append([])
            queries, keys = block.length, len(block.keys)
        queries = max(queries, block.length)
        groups[-1].append(block)
    return groups


def _bucket(blocks: Sequence[Block], window: int | None, device: torch.device) -> Bucket:
    lengths = np.array([block.length for block in blocks])
    seen = np.array([len(block.keys) for block in blocks])
    queries = np.zeros((len(blocks), lengths.max()), np.int64)
    keys = np.zeros((len(blocks), seen.max()), np.int64)
    for number, block in enumerate(blocks):
        queries[number, : block.length] = np.arange(block.start, block.start + block.length)
        keys[number, : len(block.keys)] = block.keys
    # The place of a query on its path; padded queries look where the last one does.
    at = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1) + (seen - lengths)[:, None]
    steps = np.arange(seen.max())
    hidden = steps[None, None, :] > at[:, :, None]
    if window is not None:
        hidden |= steps[None, None, :] <= at[:, :, None] - window
    real = np.arange(lengths.max()) < lengths[:, None]
    return Bucket(
        torch.from_numpy(queries).to(device),
        torch.from_numpy(keys).to(device),
        torch.from_numpy(hidden[:, None]).to(device),
        None if real.all() else torch.from_numpy(real[:, None, :, None]).float().to(device),
    )


def _places(groups: Sequence[Sequence[Block]], count: int, *, keys: bool) -> Tensor:
    places, offset = np.zeros(count, np.int64), 0
    for blocks in groups:
        sizes = [len(block.keys) if keys else block.length for block in blocks]
        for number, (block, size) in enumerate(zip(blocks, sizes, strict=True)):
            start = offset + number * max(sizes)
            mine = block.keys if keys else slice(block.start, block.start + block.length)
            places[mine] = np.arange(start, start + size)
        offset += len(blocks) * max(sizes)
    return torch.from_numpy(places)
