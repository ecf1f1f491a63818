"""Encoded rows as flat arrays, in memory or mapped from a file, instead of a list of objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, cast, overload

import numpy as np

from peftkit.data.encode import IGNORED, Encoded

UNTOLD = -1
"""The class of a row that has none."""


class RowBlock(NamedTuple):
    """Some neighbouring rows of a data set, N rows with T tokens in all."""

    ids: np.ndarray
    """[T] int32."""
    trained: np.ndarray
    """[T] uint8, 1 where the label is the id and 0 where it is -100."""
    lengths: np.ndarray
    """[N] int64."""
    classes: np.ndarray
    """[N] int64, -1 where a row has none."""

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> RowBlock:
        """Gather rows; a label that is neither its id nor -100 is a ValueError."""
        lengths = np.fromiter((len(row.ids) for row in rows), np.int64, len(rows))
        total = int(lengths.sum())
        ids = np.fromiter(chain.from_iterable(row.ids for row in rows), np.int32, total)
        labels = np.fromiter(chain.from_iterable(row.labels for row in rows), np.int32, total)
        trained = labels != IGNORED
        if not np.array_equal(labels[trained], ids[trained]):
            raise ValueError("a label is neither the id of its token nor -100")
        classes = (UNTOLD if row.label is None else row.label for row in rows)
        return cls(ids, trained.view(np.uint8), lengths, np.fromiter(classes, np.int64, len(rows)))


class EncodedRows(Sequence[Encoded]):
    """The rows of blocks, one after the other; each becomes an `Encoded` when it is asked for."""

    def __init__(self, blocks: Sequence[RowBlock], digest: str | None = None):
        self.blocks, self._digest = blocks, digest
        self.lengths: np.ndarray = np.concatenate([np.zeros(0, np.int64), *(block.lengths for block in blocks)])
        """[N] int64."""
        self._first = np.cumsum([0, *(len(block.lengths) for block in blocks)])
        inside = [np.cumsum(block.lengths) - block.lengths for block in blocks]
        self._begins = np.concatenate([np.zeros(0, np.int64), *inside])

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> EncodedRows:
        """Return rows as arrays; what is so already is returned as it is."""
        return rows if isinstance(rows, EncodedRows) else cls([RowBlock.of(rows)])

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, at: int) -> Encoded: ...
    @overload
    def __getitem__(self, at: slice) -> list[Encoded]: ...
    def __getitem__(self, at: int | slice) -> Encoded | list[Encoded]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        number = int(np.searchsorted(self._first, at, side="right")) - 1
        block, begin, length = self.blocks[number], int(self._begins[at]), int(self.lengths[at])
        ids = block.ids[begin : begin + length]
        labels = np.where(block.trained[begin : begin + length], ids, IGNORED)
        label = int(block.classes[at - self._first[number]])
        return Encoded(ids.tolist(), labels.tolist(), None if label == UNTOLD else label)

    def __iter__(self) -> Iterator[Encoded]:
        return (self[at] for at in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Encoded.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def digest(self) -> str:
        """Return the SHA-256 of the ids and labels in order, and of the rows' classes where they have one."""
        if self._digest is None:
            state = hashlib.sha256()
            self.feed(state)
            self._digest = state.hexdigest()
        return self._digest

    def feed(self, state: Any) -> None:
        """Add the rows to the state of a digest, which they may be a part of."""
        for block in self.blocks:
            state.update(_words(block).tobytes())


def lengths_of(rows: Sequence[Encoded]) -> np.ndarray:
    """Return the numbers of tokens of rows, [N] int64."""
    return (
        rows.lengths
        if isinstance(rows, EncodedRows)
        else np.fromiter((len(row.ids) for row in rows), np.int64, len(rows))
    )


def _words(block: RowBlock) -> np.ndarray:
    """Write rows as whole numbers: each one's length, ids, length, labels, and where it has a class 1 and the class."""
    lengths, told = block.lengths, block.classes != UNTOLD
    sizes = 2 * lengths + 2 + 2 * told
    begins = np.cumsum(sizes) - sizes
    words = np.empty(int(sizes.sum()), np.int64)
    words[begins] = words[begins + lengths + 1] = lengths
    # Of each token, its place among the words of its row.
    places = np.repeat(begins + 1 - (np.cumsum(lengths) - lengths), lengths) + np.arange(len(block.ids))
    words[places] = block.ids
    words[places + np.repeat(lengths + 1, lengths)] = np.where(block.trained, block.ids, IGNORED)
    last = cast(np.ndarray, (begins + 2 * lengths + 2)[told])
    words[last], words[last + 1] = 1, block.classes[told]
    return words
