"""BLEU as the official E2E script prints it: mteval-v13a, corpus level, several references.

Papineni et al. 2002 (ACL P02-1040); the program is NIST's mteval-v13a.pl, run without regard to case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from peftkit.metrics import summed
from peftkit.metrics.mteval import tokenize
from peftkit.metrics.ngrams import matches

ORDERS = 4


def total(sums: Sequence[float]) -> dict[str, float]:
    """Return cumulative BLEU-1 to BLEU-4 as fractions: brevity penalty times the geometric mean of the precisions."""
    length, closest, *counts = sums
    if not length:
        return {f"BLEU-{order}": 0.0 for order in range(1, ORDERS + 1)}
    penalty = min(0.0, 1 - closest / length)
    logarithms = [math.log(precision) for precision in smooth(counts[:ORDERS], counts[ORDERS:])]
    return {
        f"BLEU-{order}": math.exp(penalty + math.fsum(logarithms[:order]) / order) for order in range(1, ORDERS + 1)
    }


@summed("bleu", *(f"BLEU-{order}" for order in range(1, ORDERS + 1)), total=total)
def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[float, ...]]:
    """Return for each input its length, the closest reference length, and by order the n-grams matched and had."""
    return [
        matches(tokenize(prediction), [tokenize(reference) for reference in group], ORDERS)
        for prediction, group in zip(predictions, references, strict=True)
    ]


def smooth(matched: Sequence[float], total: Sequence[float]) -> list[float]:
    """Return the precision of each order; the k-th order without a match counts as 1 / (2^k total).

    An order of which the predictions have no n-gram counts as 1.
    """
    precisions, halving = [], 1.0
    for hits, candidates in zip(matched, total, strict=True):
        if not candidates:
            precisions.append(1.0)
        elif hits:
            precisions.append(hits / candidates)
        else:
            halving /= 2
            precisions.append(halving / candidates)
    return precisions
