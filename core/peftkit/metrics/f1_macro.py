"""Macro F1: the mean over classes of the F1 of each, as scikit-learn computes it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from peftkit.metrics import metric
from peftkit.metrics.f1 import binary


@metric("f1_macro", "f1_macro")
def f1_macro(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `f1_macro`, over the labels that are there or predicted."""
    labels = [group[0] for group in references]
    return {"f1_macro": fmean(binary(predictions, labels, label) for label in sorted({*predictions, *labels}))}
