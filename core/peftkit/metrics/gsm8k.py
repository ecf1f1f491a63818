"""Accuracy of worked answers that end in a number, by the official rule of GSM8K.

Cobbe et al. 2021, arXiv:2110.14168; `grade_school_math/dataset.py` of openai/grade-school-math.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from peftkit.errors import PeftkitError
from peftkit.metrics import metric

INVALID = "[invalid]"
FINAL = re.compile(r"#### (-?[0-9.,]+)")
ANY = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)", re.ASCII)


@metric("gsm8k", "accuracy", "accuracy_flexible")
def gsm8k(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `accuracy`, the fraction whose first `#### number` is the reference's, letter for letter but for commas.

    `accuracy_flexible` is the fraction whose last number of any kind equals the reference's; it is no official figure.
    Raises PeftkitError for a reference without an answer.
    """
    strict = flexible = 0
    for number, (prediction, group) in enumerate(zip(predictions, references, strict=True), 1):
        answers = [extract(reference) for reference in group]
        if INVALID in answers:
            raise PeftkitError(f"gsm8k: reference {number} has no line '#### number', so no answer can be right.")
        strict += extract(prediction) in answers
        flexible += last_number(prediction) in [last_number(answer) for answer in answers]
    return {"accuracy": strict / len(predictions), "accuracy_flexible": flexible / len(predictions)}


def extract(text: str) -> str:
    """Return the number after the first `####` that one space and a number follow, without commas, or `[invalid]`."""
    match = FINAL.search(text)
    return match[1].replace(",", "") if match else INVALID


def last_number(text: str) -> Decimal | None:
    """Return the value of the last number in `text`, or None where there is none."""
    numbers = ANY.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
