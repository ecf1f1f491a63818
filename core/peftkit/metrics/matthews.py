"""Matthews' correlation of labels, of two classes or more (Gorodkin 2004, doi 10.1016/j.compbiolchem.2004.09.006)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from peftkit.metrics import metric


@metric("matthews", "matthews")
def matthews(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `matthews` in [-1, 1]; 0 where the labels or the predictions are all the same, as scikit-learn does."""
    labels, count = [group[0] for group in references], len(predictions)
    right = sum(p == label for p, label in zip(predictions, labels, strict=True))
    wanted, given = Counter(labels), Counter(predictions)
    shared = right * count - sum(wanted[label] * given[label] for label in wanted)
    spreads = [count**2 - sum(n * n for n in counted.values()) for counted in (wanted, given)]
    return {"matthews": shared / math.sqrt(spreads[0] * spreads[1]) if all(spreads) else 0.0}
