"""TER as sacrebleu computes it: the edits, shifts of words included, that turn a text into its nearest reference.

Snover et al. 2006 (AMTA); Post 2018 (ACL W18-6319). sacrebleu follows the program Tercom: case does not count,
punctuation stays on its word, and shifts are sought greedily, the one that saves most edits first. Its search is kept
move by move, as is its tokenizer; distances, which take nearly all of its time, are computed in another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from peftkit.metrics import summed
from peftkit.metrics.edits import Distance, fewest_edits

if TYPE_CHECKING:
    from sacrebleu.metrics.lib_ter import BeamEditDistance
    from sacrebleu.tokenizers.tokenizer_ter import TercomTokenizer

TRIALS = 1000
"""Trial shifts for one text and reference, after which the search ends."""
LONGEST, FARTHEST = 10, 50
"""Words of the longest shift, and between the places of a phrase in text and reference."""
BEAM = 25
"""Half of the band around the diagonal in which sacrebleu looks for a distance."""


def total(sums: Sequence[float]) -> dict[str, float]:
    """Return 100 times the edits over the words of an average reference, both summed over inputs; lower is better.

    The scale is sacrebleu's.
    """
    edits, words = sums
    return {"TER": 100 * (edits / words if words else float(edits > 0))}


@summed("ter", "TER", total=total)
def ter(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[float, ...]]:
    """Return for each input the edits to its nearest reference, and the mean words of a reference."""
    return [count(prediction, tuple(group)) for prediction, group in zip(predictions, references, strict=True)]


@lru_cache(maxsize=1 << 16)
def count(prediction: str, references: tuple[str, ...]) -> tuple[int, float]:
    """Return the edits to the nearest reference, and the mean words of a reference."""
    split = tokenizer()
    hypothesis = split(prediction.rstrip()).split()
    texts = [split(reference.rstrip()).split() for reference in references]
    best: int | None = None
    for reference in sorted(texts, key=lambda reference: fewest_edits(hypothesis, reference)):
        best = edits_to(hypothesis, reference, best)
    assert best is not None
    return best, sum(map(len, texts)) / len(texts)


@lru_cache(maxsize=1)
def tokenizer() -> TercomTokenizer:
    """Return sacrebleu's tokenizer with its default options."""
    from sacrebleu.tokenizers.tokenizer_ter import TercomTokenizer

    return TercomTokenizer(normalized=False, no_punct=False, asian_support=False, case_sensitive=False)


def edits_to(words: list[str], reference: list[str], limit: int | None) -> int:
    """Return the shifts and edits from `words` to `reference`, or `limit` where they cannot be fewer."""
    if not reference:
        return len(words) if limit is None else min(limit, len(words))
    # A shift moves words and changes none, so what is at least left stays the same.
    bound = fewest_edits(words, reference)
    search = ShiftSearch(reference)
    while limit is None or search.shifts + bound < limit:
        distance, trace = search.edits(words)
        shifted = search.best_shift(words, distance, trace) if distance > bound else None
        if shifted is None or search.trials >= TRIALS:
            total = search.shifts + distance
            return total if limit is None else min(limit, total)
        words, search.shifts = shifted, search.shifts + 1
    return limit


class ShiftSearch:
    """The search for shifts that bring texts nearer to one reference."""

    def __init__(self, reference: list[str]):
        self.reference = reference
        self.shifts = self.trials = 0
        self._distance = Distance(reference)
        self._banded: BeamEditDistance | None = None

    def edits(self, words: list[str]) -> tuple[int, str]:
        """Return the distance from `words` to the reference, and the edits, as `Distance.trace` gives them."""
        traced = self._distance.trace(words)
        return traced if self._exact(words, traced[0]) else self._in_band(words)

    def best_shift(self, words: list[str], distance: int, trace: str) -> list[str] | None:
        """Return `words` after the shift that saves most edits; None where none saves any.

        Of equals, Tercom takes the longest, then the earliest in the text, then the one to the earliest place.
        """
        best = None
        for start, length, places in shiftable(words, self.reference, trace):
            for place in places:
                self.trials += 1
                shifted = move(words, start, length, place)
                after = self._distance.below(distance, shifted, words, min(start, place))
                if after is not None and not self._exact(shifted, after):
                    after, _ = self._in_band(shifted)
                if after is None or after >= distance:
                    continue
                candidate = (distance - after, length, -start, -place, shifted)
                if best is None or candidate > best:
                    best = candidate
            if self.trials >= TRIALS:
                break
        return best and best[-1]

    def _exact(self, words: list[str], distance: int) -> bool:
        """Return whether sacrebleu's band holds every way of so few edits: then its result is the true one.

        Of d edits that lengthen a text by s words, (d + s) / 2 put one in and (d - s) / 2 leave one out, so no way
        strays farther than (d + |s|) / 2 from the line that joins the corners.
        """
        return (distance + abs(len(words) - len(self.reference))) / 2 < BEAM - 1

    def _in_band(self, words: list[str]) -> tuple[int, str]:
        from sacrebleu.metrics.lib_ter import BeamEditDistance

        self._banded = self._banded or BeamEditDistance(self.reference)
        return self._banded(words)


def shiftable(words: list[str], reference: list[str], trace: str) -> Iterator[tuple[int, int, list[int]]]:
    """Iterate over (start, length, places to put it) of the phrases that text and reference have at different places.

    At least one word of the phrase is wrong where it stands, and one is missing where the reference has it. `trace` is
    the list of edits from `words` to `reference`.
    """
    at, wrong, missing = align(trace)
    places: dict[str, list[int]] = {}
    for place, word in enumerate(reference):
        places.setdefault(word, []).append(place)
    for start, first in enumerate(words):
        for place in places.get(first, ()):
            if abs(place - start) > FARTHEST:
                continue
            longest = min(LONGEST, len(words) - start, len(reference) - place)
            for length in range(1, longest + 1):
                if words[start + length - 1] != reference[place + length - 1]:
                    break
                if not any(wrong[start : start + length]) or not any(missing[place : place + length]):
                    continue
                if start <= at[place] < start + length:
                    continue
                targets = [0 if place + offset < 0 else at[place + offset] + 1 for offset in range(-1, length)]
                yield start, length, [t for i, t in enumerate(targets) if i == 0 or t != targets[i - 1]]


def align(trace: str) -> tuple[list[int], list[bool], list[bool]]:
    """Return, of a list of edits, each reference word's place in the text, and which words of either do not match.

    `trace` is as `Distance.trace` gives it.
    """
    at, wrong, missing = [], [], []
    for edit in trace:
        if edit != "i":
            wrong.append(edit != " ")
        if edit != "d":
            missing.append(edit != " ")
            at.append(len(wrong) - 1)
    return at, wrong, missing


def move(words: list[str], start: int, length: int, place: int) -> list[str]:
    """Return `words` with `length` of them, from `start` on, put before the word at `place`.

    A place inside the phrase itself counts from where the rest has closed up, as in Tercom.
    """
    phrase, rest = words[start : start + length], words[:start] + words[start + length :]
    if place > start + length:
        place -= length
    return rest[:place] + phrase + rest[place:]
