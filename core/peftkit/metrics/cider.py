"""CIDEr as the official E2E script prints it: CIDEr-D, cosines of weighted n-grams on Penn Treebank tokens.

Vedantam, Zitnick and Parikh 2015, arXiv:1411.5726; clipped and with a length penalty, without stemming.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from peftkit.metrics import summed
from peftkit.metrics.ngrams import Ngram, count
from peftkit.metrics.ptb import separate, tokenize_groups, tokenize_lines

ORDERS = 4
SIGMA = 6.0


@dataclass(frozen=True)
class Vector:
    """A text as a weight per n-gram, one table and one Euclidean norm an order, and its length in bigrams."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    length: int


def total(sums: Sequence[float]) -> dict[str, float]:
    """Return ten times the mean over inputs, references and orders of the clipped cosine; 0 for a single input."""
    similar, inputs = sums
    return {"CIDEr": 10 * similar / inputs}


@summed("cider", "CIDEr", total=total)
def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[float, ...]]:
    """Return for each input the mean similarity to its references, and 1.

    How rare an n-gram is is counted in all the references.
    """
    groups = [[counts(tokens) for tokens in group] for group in tokenize_groups(references)]
    inputs_with: Counter[Ngram] = Counter()
    for group in groups:
        inputs_with.update({ngram for text in group for order in text for ngram in order})
    inputs = math.log(len(groups))
    rarity = {ngram: inputs - math.log(times) for ngram, times in inputs_with.items()}
    rows = []
    for tokens, group in zip(tokenize_lines(predictions), groups, strict=True):
        hypothesis = weigh(counts(tokens), rarity, inputs)
        similar = math.fsum(similarity(hypothesis, weigh(text, rarity, inputs)) for text in group)
        rows.append((similar / len(group), 1))
    return rows


def counts(tokens: Sequence[str]) -> list[Counter[Ngram]]:
    """Count the n-grams of a text, one counter an order."""
    words = separate(tokens)
    return [count(words, order) for order in range(1, ORDERS + 1)]


def weigh(text: list[Counter[Ngram]], rarity: dict[Ngram, float], unseen: float) -> Vector:
    """Weigh each n-gram by its count times the logarithm of how rare it is; `unseen` in no reference at all."""
    weights = [{ngram: times * rarity.get(ngram, unseen) for ngram, times in order.items()} for order in text]
    norms = [math.sqrt(sum(weight * weight for weight in order.values())) for order in weights]
    return Vector(weights, norms, text[1].total())


def similarity(hypothesis: Vector, reference: Vector) -> float:
    """Return the mean cosine, the hypothesis clipped to the reference, times a Gaussian of the difference in length."""
    total = 0.0
    for order in range(ORDERS):
        theirs, norm = reference.weights[order], hypothesis.norms[order] * reference.norms[order]
        if norm:
            shared = ((weight, theirs[ngram]) for ngram, weight in hypothesis.weights[order].items() if ngram in theirs)
            total += sum(min(weight, other) * other for weight, other in shared) / norm
    return total / ORDERS * math.exp(-((hypothesis.length - reference.length) ** 2) / (2 * SIGMA**2))
