"""Spearman's correlation: Pearson's of the ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftkit.metrics import metric
from peftkit.metrics.pearson import correlation, defined, numbers


@metric("spearman", "spearman")
def spearman(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `spearman` in [-1, 1]; raises as `pearson` does."""
    x, y = numbers("spearman", predictions, references)
    return {"spearman": defined("spearman", correlation(ranks(x), ranks(y)))}


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks [n] from 1 of values [n]; equal ones have the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
