"""Accuracy of answers in words by their last number, or their first letter of a choice (Hu et al. 2023).

arXiv:2304.01933; `evaluate.py` of AGI-Edgerunners/LLM-Adapters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from peftkit.metrics import metric

NUMBER = re.compile(r"-?\d+\.?\d*", re.ASCII)
LETTERS = "ABCDE"
NEAR = 0.001
"""How far a number may be from the reference's."""


@metric("last_number", "accuracy")
def last_number(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `accuracy`, the fraction whose last number, commas aside, is within 0.001 of a reference's.

    Where a reference is a letter from A to E, the first such letter of the prediction has to be it. A prediction with
    neither is wrong.
    """
    right = sum(any(_agrees(text, gold) for gold in group) for text, group in zip(predictions, references, strict=True))
    return {"accuracy": right / len(predictions)}


def _agrees(prediction: str, reference: str) -> bool:
    if reference.strip() in tuple(LETTERS):
        return next((letter for letter in prediction if letter in LETTERS), None) == reference.strip()
    wanted, found = _last(reference), _last(prediction)
    return wanted is not None and found is not None and abs(found - wanted) <= NEAR


def _last(text: str) -> float | None:
    numbers = NUMBER.findall(text.replace(",", ""))
    return float(numbers[-1]) if numbers else None
