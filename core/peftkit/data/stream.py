"""Micro-batches of data that are read on and on: sets that do not fit on the disk twice, and files that never end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from peftkit.data.batches import Batches, EpochPlan
from peftkit.data.encode import EncodedExamples
from peftkit.data.encoding import Encode
from peftkit.data.example import Example
from peftkit.data.examples import Examples
from peftkit.data.rows import lengths_of

BLOCK = 1024
"""Examples that are read together where they are not shuffled."""


class Streamed(Batches):
    """Cuts examples into micro-batches as they come: epoch n is the n-th block of them.

    They keep the order of their files, or with a `buffer` are shuffled and sorted by length within each block of so
    many. Behind the last example the first one follows. One block is held at a time.
    """

    def __init__(self, examples: Examples, encode: Encode, buffer: int | None = None, **options: Any):
        self.examples, self.encode, self.size, self.ordered = examples, encode, buffer or BLOCK, buffer is None
        self._reading: Iterator[tuple[int, list[Example]]] = iter(())
        self._following = -1
        """The block that is read next."""
        self.first = self._read(0)
        """Block 0, and what its length limit cost."""
        self.number = 0
        super().__init__(self.first.rows, **options)

    def plan(self, epoch: int) -> EpochPlan:
        """Return the micro-batches of a block, which is read if it is not there; that may be none."""
        if epoch != self.number:
            self.encoded = (self.first if epoch == 0 else self._read(epoch)).rows
            self.lengths, self.number = lengths_of(self.encoded), epoch
            self._plans.clear()
        return super().plan(epoch)

    def _plan(self, epoch: int) -> EpochPlan:
        if not len(self.encoded):
            return EpochPlan(np.zeros(0, np.int64), np.zeros(1, np.int64))
        if not self.ordered:
            return super()._plan(epoch)
        return EpochPlan(np.arange(len(self.encoded)), self._cut(self.lengths))

    def _read(self, number: int) -> EncodedExamples:
        """Read a block; those before it are passed over, line by line, where reading is not there yet."""
        if number != self._following:
            self._reading = self.examples.chunks(self.size, after=number * self.size)
        _, chunk = next(self._reading, (0, []))
        self._following = number + 1
        if not chunk:
            blocks = -(-len(self.examples) // self.size)
            self._reading = self.examples.chunks(self.size, after=number % blocks * self.size)
            _, chunk = next(self._reading)
        return self.encode(chunk)
