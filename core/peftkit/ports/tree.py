"""Rows of tokens laid out as a tree: every shared beginning stands once, and there is no padding at all.

What a token sees is its own path from the root, so that whatever reads one token at a time runs on the flat tokens
[1, N], and attention alone needs to know the tree. Logits, loss and gradients are those of the separate rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SHARED = 8
"""Tokens that a shared beginning has at least; shorter ones are cheaper to compute for each row."""
QUERIES = 256
"""Queries of one block at most: an early block of a long text leaves out the keys behind it."""
WASTE = 1.5
"""How many times its own scores a block may take where it is padded to the shape of others."""
SMALL = 4096
"""Scores so few that padding by that many costs less than another product."""


@dataclass(frozen=True)
class Block:
    """Queries that follow each other on one path, and the keys of that path up to the last of them."""

    start: int
    length: int
    keys: np.ndarray
    """[K] positions in the flat tokens; the last `length` are those of the queries."""


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


class Plan:
    """What attention reads: the buckets, and where each flat token stands among their queries and keys."""

    def __init__(self, tree: Tree, window: int | None):
        device = tree.ids.device
        groups = _alike(tree.blocks)
        self.buckets = [_bucket(blocks, window, device) for blocks in groups]
        self.count = len(tree.ids)
        self.answers = _places(groups, self.count, keys=False).to(device)
        """[N] long: the place of each token among the queries of all buckets, padding included."""
        once = sum(len(block.keys) for block in tree.blocks) == self.count
        self.origins = _places(groups, self.count, keys=True).to(device) if once else None
        """[N] long: the same among the keys, where each token is a key of one block alone; else None."""


@dataclass(frozen=True)
class Tree:
    """N flat tokens; `rows[i]` lists where the tokens of row i stand, the shared ones among them."""

    ids: Tensor
    """[N] long."""
    positions: Tensor
    """[N] long: the distance from the root, which is the position in every row that a token is part of."""
    rows: list[np.ndarray]
    blocks: list[Block]

    @property
    def saved(self) -> int:
        """Tokens of the rows that are not computed again."""
        return sum(map(len, self.rows)) - len(self.ids)

    def to(self, device: torch.device) -> Tree:
        """Return the tree with its tensors on `device`, where plans are made too."""
        return Tree(self.ids.to(device), self.positions.to(device), self.rows, self.blocks)

    def plan(self, window: int | None = None) -> Plan:
        """Return what attention reads, made once for each sliding window (None: the whole path is seen)."""
        plans: dict[int | None, Plan] = self.__dict__.setdefault("plans", {})
        if window not in plans:
            plans[window] = Plan(self, window)
        return plans[window]


def grow(rows: Sequence[Sequence[int]], share: bool = True) -> Tree:
    """Lay out rows of token ids, none of them empty; without `share` each row stands by itself."""
    order = sorted(range(len(rows)), key=rows.__getitem__) if share else list(range(len(rows)))
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    places: list[np.ndarray] = [np.empty(0, np.int64)] * len(rows)
    blocks: list[Block] = []
    count = 0
    row = path = np.empty(0, np.int64)
    for index in order:
        before, row = row, np.asarray(rows[index], dtype=np.int64)
        kept = _common(before, row) if share else 0
        path = np.concatenate([path[:kept], np.arange(count, count + len(row) - kept)])
        places[index] = path
        ids.append(row[kept:])
        positions.append(np.arange(kept, len(row)))
        for start in range(kept, len(row), QUERIES):
            end = min(start + QUERIES, len(row))
            blocks.append(Block(int(path[start]), end - start, path[:end]))
        count += len(row) - kept
    return Tree(torch.from_numpy(np.concatenate(ids)), torch.from_numpy(np.concatenate(positions)), places, blocks)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Count the tokens with which both rows begin; 0 where they are too few to share."""
    shorter = min(len(a), len(b))
    differs = np.flatnonzero(a[:shorter] != b[:shorter])
    common = int(differs[0]) if len(differs) else shorter
    return common if common >= SHARED else 0


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
    parts = (torch.from_numpy(array).to(device) for array in (queries, keys, hidden[:, None]))
    return Bucket(*parts, None if real.all() else torch.from_numpy(real[:, None, :, None]).float().to(device))


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
