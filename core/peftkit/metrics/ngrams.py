"""Counts of n-grams, and how many of them a prediction shares with its references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

Ngram = tuple[str, ...]


def slide(tokens: Sequence[str], order: int) -> Iterator[Ngram]:
    """Iterate over the n-grams of exactly `order` tokens."""
    return zip(*(tokens[start:] for start in range(order)), strict=False)


def count(tokens: Sequence[str], order: int) -> Counter[Ngram]:
    """Count the n-grams of exactly `order` tokens."""
    return Counter(slide(tokens, order))


def clipped(prediction: Counter[Ngram], references: Sequence[Counter[Ngram]]) -> dict[Ngram, int]:
    """Count the n-grams that are matched, each at most as often as in the one reference that has it most often."""
    most = {ngram: max(reference.get(ngram, 0) for reference in references) for ngram in prediction}
    return {ngram: min(times, most[ngram]) for ngram, times in prediction.items() if most[ngram]}


def closest_length(length: int, references: Iterable[Sequence[str]]) -> int:
    """Return the length of the reference closest to `length`, the shorter of two equally close."""
    return min((abs(len(reference) - length), len(reference)) for reference in references)[1]


def matches(tokens: Sequence[str], references: Sequence[Sequence[str]], orders: int) -> tuple[int, ...]:
    """Return what BLEU sums of an input: its length, the closest reference length, then by order matched, then had."""
    matched, had = [], []
    for order in range(1, orders + 1):
        counts = count(tokens, order)
        had.append(counts.total())
        matched.append(sum(clipped(counts, [count(reference, order) for reference in references]).values()))
    return len(tokens), closest_length(len(tokens), references), *matched, *had
