"""BLEU as the COCO captioning tools compute it: on Penn Treebank tokens without punctuation, hardly smoothed.

Chen et al. 2015, arXiv:1504.00325. It is another figure than the BLEU of the E2E script, hence the prefix of its keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from peftkit.metrics import summed
from peftkit.metrics.ngrams import matches
from peftkit.metrics.ptb import separate, tokenize_groups, tokenize_lines

ORDERS = 4
# The tools add these to numerators and denominators so that nothing is divided by zero.
TINY, SMALL = 1e-15, 1e-9


def total(sums: Sequence[float]) -> dict[str, float]:
    """Return cumulative BLEU-1 to BLEU-4 as fractions, with the closest reference length."""
    length, closest, *counts = sums
    ratio = (length + TINY) / (closest + SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = {}, 1.0
    for order in range(1, ORDERS + 1):
        product *= (counts[order - 1] + TINY) / (counts[ORDERS + order - 1] + SMALL)
        scores[f"coco_BLEU-{order}"] = product ** (1 / order) * penalty
    return scores


@summed("coco_bleu", *(f"coco_BLEU-{order}" for order in range(1, ORDERS + 1)), total=total)
def coco_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[float, ...]]:
    """Return for each input its length, the closest reference length, and by order the n-grams matched and had."""
    return [
        matches(separate(tokens), [separate(reference) for reference in group], ORDERS)
        for tokens, group in zip(tokenize_lines(predictions), tokenize_groups(references), strict=True)
    ]
