"""Rows of tokens packed as a tree: every shared beginning stands once, and there is no padding at all.

What a token sees is its own path from the root, so that whatever reads one token at a time runs on the flat tokens
[1, N], and attention alone needs to know the tree. Logits, loss and gradients are those of the separate rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SHARED = 8
"""Tokens that a shared beginning has at least; shorter ones are cheaper to compute for each row."""
QUERIES = 256
"""Queries of one block at most: an early block of a long text leaves out the keys behind it."""


@dataclass(frozen=True)
class Block:
    """Queries that follow each other on one path, and the keys of that path up to the last of them."""

    start: int
    length: int
    keys: np.ndarray
    """[K] positions in the flat tokens; the last `length` are those of the queries."""


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
        """How many tokens of the rows need not be computed, as others have them."""
        return sum(map(len, self.rows)) - len(self.ids)

    def to(self, device: torch.device) -> Tree:
        """Return the tree with its tensors on `device`, where plans are made too; itself if it is there."""
        if self.ids.device == device:
            return self
        return Tree(self.ids.to(device), self.positions.to(device), self.rows, self.blocks)


def grow(rows: Sequence[Sequence[int]], share: bool = True) -> Tree:
    """Lay out rows of token ids, none of them empty; without `share` each row stands by itself."""
    order = sorted(range(len(rows)), key=lambda index: list(rows[index])) if share else list(range(len(rows)))
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


def cut(tree: Tree, length: int, first: int = 0) -> Tree:
    """Return the tree whose tokens see their own span of a row alone: `first` tokens, and then `length` each.

    It is made once for each choice. A span goes by the position in the row, so that shared beginnings stay shared.
    """
    made: dict[tuple[int, int], Tree] = tree.__dict__.setdefault("cuts", {})
    if (length, first) not in made:
        blocks = [piece for block in tree.blocks for piece in _pieces(block, length, first)]
        made[length, first] = Tree(tree.ids, tree.positions, tree.rows, blocks)
    return made[length, first]


def _pieces(block: Block, length: int, first: int) -> Iterator[Block]:
    end = len(block.keys)
    at = end - block.length
    while at < end:
        begin = 0 if at < first else at - (at - first) % length
        stop = min(end, first if at < first else begin + length)
        yield Block(int(block.keys[at]), stop - at, block.keys[begin:stop])
        at = stop


def goes_on(path: np.ndarray, block: Block) -> bool:
    """Say whether a block's queries follow the last token of a path, the last of the flat tokens."""
    kept = len(block.keys) - block.length
    return kept == len(path) and path[-1] == block.keys[kept - 1] == block.start - 1


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Count the tokens with which both rows begin; 0 where they are too few to share."""
    shorter = min(len(a), len(b))
    differs = np.flatnonzero(a[:shorter] != b[:shorter])
    common = int(differs[0]) if len(differs) else shorter
    return common if common >= SHARED else 0
