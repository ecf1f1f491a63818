"""NIST as the official E2E script prints it: n-gram matches weighted by how much they tell.

Doddington 2002 (HLT); the program is NIST's mteval-v13a.pl, whose two oddities are kept: published figures have them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from peftkit.metrics import summed
from peftkit.metrics.mteval import tokenize
from peftkit.metrics.ngrams import Ngram, clipped, count, slide

ORDERS = 5


def total(sums: Sequence[float]) -> dict[str, float]:
    """Return the matched information per n-gram, summed over orders 1 to 5, times the length penalty."""
    inputs, texts, words, length, *counts = sums
    score = math.fsum(gained / had for gained, had in zip(counts[:ORDERS], counts[ORDERS:], strict=True) if had)
    # mteval divides by the mean number of references, not each input by its own: they differ where the number varies.
    mean_reference_length = words / (texts / inputs)
    return {"NIST": score * length_penalty(length / mean_reference_length if mean_reference_length else 0.0)}


@summed("nist", "NIST", total=total)
def nist(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[float, ...]]:
    """Return for each input 1, its references, their words, its own, and for each order the information and n-grams.

    How much an n-gram tells is counted in all the references.
    """
    hypotheses = [tokenize(prediction) for prediction in predictions]
    groups = [[tokenize(reference) for reference in group] for group in references]
    lengths = [sum(map(len, group)) for group in groups]
    words, histories = sum(lengths), Counter[Ngram]()
    gained: list[list[float]] = [[] for _ in groups]
    had: list[list[int]] = [[] for _ in groups]
    for order in range(1, ORDERS + 1):
        seen = Counter[Ngram](ngram for group in groups for tokens in group for ngram in slide(tokens, order))
        for index, (tokens, group) in enumerate(zip(hypotheses, groups, strict=True)):
            counts = count(tokens, order)
            matched = clipped(counts, [count(reference, order) for reference in group])
            gains = (hits * information(ngram, seen, histories, words) for ngram, hits in matched.items())
            gained[index].append(math.fsum(gains))
            had[index].append(counts.total())
        histories = seen
    return [
        (1, len(group), lengths[index], len(tokens), *gained[index], *had[index])
        for index, (tokens, group) in enumerate(zip(hypotheses, groups, strict=True))
    ]


def information(ngram: Ngram, seen: Counter[Ngram], histories: Counter[Ngram], words: int) -> float:
    """Return log2 of how many times its history was seen for every time the n-gram was.

    The history of a single token is the whole text; so is the history "0", which Perl takes for an empty one.
    """
    history = ngram[:-1]
    times = histories[history] if history and history != ("0",) else words
    return math.log2(times / seen[ngram])


def length_penalty(ratio: float) -> float:
    """Return 1 from the references' length up, 0.5 at two thirds of it, and 0 for nothing at all."""
    if ratio <= 0:
        return 0.0
    return math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(min(1.0, ratio)) ** 2)
