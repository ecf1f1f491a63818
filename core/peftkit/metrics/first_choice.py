"""Accuracy of answers in words by the first choice that they name (Hu et al. 2023).

arXiv:2304.01933; `commonsense_evaluate.py` of AGI-Edgerunners/LLM-Adapters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from peftkit.errors import PeftkitError
from peftkit.metrics import metric

KINDS = ("true|false", *(f"{word}[1-9]" for word in ("answer", "solution", "ending", "option")))
"""What choices are called in one set or another, as patterns."""


@metric("first_choice", "accuracy")
def first_choice(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `accuracy`, the fraction whose first choice of a reference's kind is the reference's.

    Kinds are `true` and `false`, and `answer`, `solution`, `ending` and `option` with a number. A prediction without a
    choice is wrong. Raises PeftkitError for a reference without one.
    """
    right = 0
    for number, (prediction, group) in enumerate(zip(predictions, references, strict=True), 1):
        right += any(_agrees(prediction, gold, number) for gold in group)
    return {"accuracy": right / len(predictions)}


def _agrees(prediction: str, reference: str, number: int) -> bool:
    for kind in KINDS:
        wanted, found = re.search(kind, reference), re.search(kind, prediction)
        if wanted:
            return found is not None and found[0] == wanted[0]
    raise PeftkitError(
        f"first_choice: reference {number} is {reference[:40]!r}, and true, false, or a numbered choice, such as "
        "answer1, is wanted."
    )
