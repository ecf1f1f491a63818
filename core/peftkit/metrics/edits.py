"""How many words to put in, leave out or change to turn one list of words into another, many times over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def fewest_edits(first: Sequence[str], second: Sequence[str]) -> int:
    """Return a bound that no number of edits falls below, in whatever order the words stand: those not in common."""
    return max(len(first), len(second)) - (Counter(first) & Counter(second)).total()


Column = tuple[int, int, int, int, int]
"""Bits of a column of the table: grows to the next row, falls to it, equal to its upper left, grows from its left; and
the distance in its last row."""


class Distance:
    """Levenshtein distances from many lists of words to one reference, a whole column of the table in a few integers.

    Bit-parallel recurrence of Myers 1999 (doi 10.1145/316542.316550) in the form of Hyyro 2003; bit i is row i + 1.
    """

    def __init__(self, reference: Sequence[str]):
        self.reference = reference
        self.full = (1 << len(reference)) - 1
        self.last = 1 << len(reference) - 1
        self.positions: dict[str, int] = {}
        for index, word in enumerate(reference):
            self.positions[word] = self.positions.get(word, 0) | 1 << index
        self._words: Sequence[str] = ()
        self._columns: list[Column] = [(self.full, 0, 0, 0, len(reference))]

    def trace(self, words: Sequence[str]) -> tuple[int, str]:
        """Return the distance from `words`, and the edits from them to the reference.

        A letter an edit, from left to right: a blank for a match, `s`, `i` and `d` for a word changed, put in and left
        out. Of equals a change comes before a word left out, and that before a word put in, seen from the end.
        """
        self._keep(words, len(words))
        edits, row, column = [], len(self.reference), len(words)
        while row or column:
            *_, level, right, _ = self._columns[column]
            bit = 1 << row - 1 if row else 0
            if not row:
                edit = "d"
            elif not column:
                edit = "i"
            elif words[column - 1] == self.reference[row - 1]:
                edit = " "
            elif not level & bit:
                edit = "s"
            else:
                edit = "d" if right & bit else "i"
            edits.append(edit)
            row, column = row - (edit != "d"), column - (edit != "i")
        return self._columns[len(words)][-1], "".join(reversed(edits))

    def below(self, limit: int, words: Sequence[str], like: Sequence[str], same: int) -> int | None:
        """Return the distance from `words` if it is less than `limit`, else None.

        `words` begins with the first `same` words of `like`, whose columns are kept from call to call.
        """
        self._keep(like, same)
        column, left = self._columns[same], len(words) - same
        for word in words[same:]:
            column, left = self._next(column, word), left - 1
            if column[-1] - left >= limit:
                return None
        return column[-1] if column[-1] < limit else None

    def _keep(self, words: Sequence[str], count: int) -> None:
        """Compute the columns of the first `count` words where they are not there yet."""
        if words is not self._words:
            self._words = words
            del self._columns[1:]
        for word in words[len(self._columns) - 1 : count]:
            self._columns.append(self._next(self._columns[-1], word))

    def _next(self, column: Column, word: str) -> Column:
        """Return the column after one word more."""
        up, down, _, _, distance = column
        full, match = self.full, self.positions.get(word, 0)
        level = ((((match & up) + up) ^ up) | match | down) & full
        right, back = down | (full & ~(level | up)), up & level
        if right & self.last:
            distance += 1
        elif back & self.last:
            distance -= 1
        shifted = (right << 1 | 1) & full
        return (back << 1 & full) | (full & ~(level | shifted)), shifted & level, level, right, distance
