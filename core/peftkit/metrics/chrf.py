"""chrF as sacrebleu computes it: F2 of character n-grams.

Popović 2015 (ACL W15-3049); Post 2018 (ACL W18-6319). Case counts, white space does not, orders 1 to 6 (chrF2).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from peftkit.metrics import summed

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF


def total(sums: Sequence[float]) -> dict[str, float]:
    """Return chrF2 in sacrebleu's scale of 0 to 100, of each input against the reference that it is best against."""
    return {"chrF": scorer()._compute_score_from_stats([int(value) for value in sums]).score}


@summed("chrf", "chrF", total=total)
def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[float, ...]]:
    """Return for each input and order the n-grams that it has, its best reference has, and both have."""
    # sacrebleu wants the first references of all inputs, then the second ones, None where an input has no more.
    streams: Any = list(zip_longest(*references))
    return [tuple(row) for row in scorer()._extract_corpus_statistics(list(predictions), streams)]


def scorer() -> CHRF:
    """Return sacrebleu's scorer, whose own bootstrap takes the same two steps, with its default options."""
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
