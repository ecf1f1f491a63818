"""What attention along a tree reads: runs of queries for a processor, edges for a GPU, buckets for plain products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.kernels.tree import QUERIES, Block, Tree, goes_on

WASTE = 1.5
"""How many times its own scores a block may take where it is padded to the shape of others."""
SMALL = 4096
"""Scores so few that padding by that many costs less than another product."""
STEP = 16
"""The kernel for processors takes up to three times as long in bf16 where keys are no multiple of this many."""


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


@dataclass(frozen=True)
class Edges:
    """Where the queries and the keys of R runs begin, as the kernel for rows of many lengths wants them."""

    queries: Tensor
    """[R + 1] int32: among the flat tokens, and the end of the last."""
    keys: Tensor
    """[R + 1] int32: the same among the keys of all runs."""
    longest: tuple[int, int]
    """The most queries and the most keys of a run."""
    index: Tensor | None
    """[K] long: the key that each of all runs' is a copy of; None where all stand in order, once."""


@dataclass(frozen=True)
class Bucket:
    """Blocks padded to one shape: S blocks of Lq queries and K keys."""

    queries: Tensor
    """[S, Lq] long: positions in the N flat tokens, N on padding."""
    keys: Tensor
    """[S, K] long: positions in the keys in front and the flat tokens, 0 on padding."""
    mask: Tensor | None
    """[S, 1, Lq, K] in fp32, added to the scores: 0 or -inf, and to each query at least one key is open."""


class TreePlan:
    """What attention along a tree reads, each part made once for each number of keys in front."""

    def __init__(self, tree: Tree, window: int | None):
        self.tree, self.window, self.device = tree, window, tree.ids.device
        self.count = len(tree.ids)
        self._runs: dict[int, list[Run]] = {}
        self._masks: dict[tuple[int, int, int, int, torch.dtype], Tensor] = {}
        self._edges: dict[tuple[int, bool], Edges] = {}
        self._buckets: dict[tuple[int, bool], list[Bucket]] = {}

    def runs(self, first: int) -> list[Run]:
        """Return the blocks, those that go on where another ended as one, behind `first` keys in front of all.

        A run that sees all tokens up to its own, and no others, needs no mask and may have any length.
        """
        if first not in self._runs:
            masked = first > 0 or self.window is not None
            joined = _joined(self.tree.blocks, lambda head: not masked and head.length == len(head.keys))
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
            mask = _mask(np.arange(run.count, count), count, self.window)
            self._masks[shape] = F.pad(F.pad(mask, (0, run.spare), value=-torch.inf), (first, 0)).to(dtype)
        return False, self._masks[shape]

    def edges(self, first: int, text: bool) -> Edges:
        """Return the edges of all runs, each with keys of its own: `first` in front, and with `text` its path."""
        if (first, text) not in self._edges:
            joined = _joined(self.tree.blocks, lambda head: True) if text else []
            paths = [blocks[-1].keys for blocks in joined] or [np.arange(0)]
            lengths = [sum(block.length for block in blocks) for blocks in joined] or [self.count]
            index = np.concatenate([part for path in paths for part in (np.arange(first), path + first)])
            plain = np.array_equal(index, np.arange(first + self.count * text))
            sizes = [first + len(path) for path in paths]
            queries, keys = (
                torch.from_numpy(np.cumsum([0, *each], dtype=np.int32)).to(self.device) for each in (lengths, sizes)
            )
            copied = None if plain else torch.from_numpy(index).to(self.device)
            self._edges[first, text] = Edges(queries, keys, (max(lengths), max(sizes)), copied)
        return self._edges[first, text]

    def buckets(self, first: int, text: bool) -> list[Bucket]:
        """Return the blocks, on a GPU padded to few shapes, behind `first` keys in front of all.

        Without `text` those in front are all there is to see.
        """
        if (first, text) not in self._buckets:
            groups = [[block] for block in self.tree.blocks] if self.device.type == "cpu" else alike(self.tree.blocks)
            made = [self._bucket(blocks, first) for blocks in groups] if text else [self._front(first)]
            self._buckets[first, text] = made
        return self._buckets[first, text]

    def _front(self, first: int) -> Bucket:
        queries, keys = (torch.arange(count, device=self.device)[None] for count in (self.count, first))
        return Bucket(queries, keys, None)

    def _bucket(self, blocks: Sequence[Block], first: int) -> Bucket:
        lengths = np.array([block.length for block in blocks])
        seen = np.array([len(block.keys) for block in blocks])
        queries = np.full((len(blocks), lengths.max()), self.count, np.int64)
        keys = np.zeros((len(blocks), first + seen.max()), np.int64)
        keys[:, :first] = np.arange(first)
        for number, block in enumerate(blocks):
            queries[number, : block.length] = np.arange(block.start, block.start + block.length)
            keys[number, first : first + len(block.keys)] = block.keys + first
        # The place of a query on its path; padded queries look where the last one does.
        at = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1) + (seen - lengths)[:, None]
        mask = F.pad(_mask(at, int(seen.max()), self.window), (first, 0))[:, None]
        return Bucket(*(x.to(self.device) for x in (torch.from_numpy(queries), torch.from_numpy(keys), mask)))


def plan_of(tree: Tree, window: int | None = None) -> TreePlan:
    """Return what attention reads, made once for each sliding window (None: the whole path is seen)."""
    plans: dict[int | None, TreePlan] = tree.__dict__.setdefault("plans", {})
    if window not in plans:
        plans[window] = TreePlan(tree, window)
    return plans[window]


def _mask(at: np.ndarray, count: int, window: int | None) -> Tensor:
    """Return what is added to the scores of the tokens `at` [...] places of a path, [..., count] in fp32: 0 or -inf."""
    keys, at = np.arange(count), at[..., None]
    hidden = keys > at
    if window is not None:
        hidden |= keys <= at - window
    return torch.zeros(hidden.shape).masked_fill_(torch.from_numpy(hidden), -torch.inf)


def _joined(blocks: Sequence[Block], free: Callable[[Block], bool]) -> list[list[Block]]:
    """Put blocks together that go on where the one before ended: any number if the first is `free`, or to `QUERIES`."""
    joined: list[list[Block]] = []
    for block in blocks:
        before = joined[-1] if joined else []
        fits = bool(before) and (free(before[0]) or block.length + sum(part.length for part in before) <= QUERIES)
        if fits and goes_on(before[-1].keys, block):
            before.append(block)
        else:
            joined.append([block])
    return joined


def _run(blocks: Sequence[Block], first: int) -> Run:
    head, length = blocks[0], sum(block.length for block in blocks)
    count = len(head.keys) - head.length
    ahead: slice | Tensor | None = None
    if count:
        low, high = int(head.keys[0]), int(head.keys[count - 1])
        ahead = slice(low, high + 1) if high - low == count - 1 else torch.from_numpy(head.keys[:count])
    return Run(head.start, length, ahead, count, -(first + count + length) % STEP)


def alike(blocks: Sequence[Block]) -> list[list[Block]]:
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
