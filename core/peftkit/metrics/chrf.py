"""chrF as sacrebleu computes it: F2 of character n-grams.

Popović 2015 (ACL W15-3049); Post 2018 (ACL W18-6319). Case counts, white space does not, orders 1 to 6 (chrF2).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from peftkit.metrics import metric


@metric("chrf", "chrF")
def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return chrF2 in sacrebleu's scale of 0 to 100, of each input against the reference that it is best against."""
    from sacrebleu.metrics.chrf import CHRF

    # sacrebleu wants the first references of all inputs, then the second ones, None where an input has no more.
    streams = list(zip_longest(*references))
    return {"chrF": CHRF().corpus_score(list(predictions), streams).score}  # type: ignore[arg-type]
