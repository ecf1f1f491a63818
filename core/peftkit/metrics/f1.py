"""F1 of the positive of two classes, as GLUE and scikit-learn compute it."""

from __future__ import annotations

from collections.abc import Sequence

from peftkit.metrics import UnavailableError, metric

POSITIVE = "1"


@metric("f1", "f1")
def f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `f1` = 2 tp / (2 tp + fp + fn) of the label `1`, or else of the later one in sorted order, such as `yes`.

    It is 0 where that label is neither there nor predicted. Raises UnavailableError for more than two labels.
    """
    labels = [group[0] for group in references]
    known = sorted({*predictions, *labels})
    if len(known) > 2:
        raise UnavailableError(
            f"f1: the labels are {', '.join(known[:12])}, and it tells two apart: `f1_macro` takes more of them."
        )
    return {"f1": binary(predictions, labels, POSITIVE if set(known) <= {"0", POSITIVE} else known[-1])}


def binary(predictions: Sequence[str], labels: Sequence[str], positive: str) -> float:
    """Return the F1 of one label against all others; 0 where it is neither there nor predicted."""
    both = sum(p == positive == label for p, label in zip(predictions, labels, strict=True))
    either = sum(p == positive for p in predictions) + sum(label == positive for label in labels)
    return 2 * both / either if either else 0.0
