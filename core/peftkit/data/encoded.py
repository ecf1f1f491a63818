"""What encoding gives: rows of token ids with label masks, and what the length limit cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peftkit.data import special

IGNORED = -100
"""The label of a token without loss, torch's own default in cross-entropy."""


@dataclass(frozen=True)
class Encoded:
    """Token ids [T] and labels [T]: `labels[i]` is `ids[i]` where trained on and -100 elsewhere (not shifted)."""

    ids: list[int]
    labels: list[int]
    label: int | None = None
    """The number of the class of the whole row, where an objective gave it one."""

    @property
    def trained(self) -> int:
        """The number of labels that a next-token loss uses: the first token is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class EncodedExamples:
    """The rows of a data set, and what its length limit cost."""

    rows: Sequence[Encoded]
    sources: Sequence[int] | np.ndarray
    """For each row, the position of its example; a long document gives several rows."""
    dropped: int
    """Examples with an empty target, or with no room for one."""
    prompts_cut: int
    """Examples whose prompt lost tokens on its left."""
    targets_cut: int
    """Examples whose target lost tokens on its right, its end-of-sequence included."""
    special: Sequence[str] = ()
    """The examples, by id, in whose texts special tokens are read as such."""
    of: int | None = None
    """How many examples there are in all, where no more than a part of them was read."""

    @property
    def examples(self) -> int:
        """The examples that have a row; the rows of one stand together."""
        return int(np.count_nonzero(np.diff(self.sources, prepend=-1)))

    @property
    def factor(self) -> float:
        """How many examples there are for each one that was read."""
        return 1.0 if self.of is None else self.of / (self.examples + self.dropped)

    def notices(self, max_length: int) -> list[str]:
        """Say in sentences what was dropped or cut; empty when nothing was."""
        total = self.dropped + self.examples
        causes = (
            (self.dropped, "dropped: the target is empty, or max_length leaves no room for it"),
            (self.targets_cut, "trained on a shortened target, which alone is longer than max_length"),
            (self.prompts_cut, "trained with a prompt shortened on its left"),
        )
        told = [special.notice(len(self.special), self.special[0])] if self.special else []
        return told + [
            f"{count} of {total} examples {what} (max_length {max_length})." for count, what in causes if count
        ]
