"""Accuracy: the part of the labels that are predicted."""

from __future__ import annotations

from collections.abc import Sequence

from peftkit.metrics import metric


@metric("accuracy", "accuracy")
def accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `accuracy`, the part of the predictions that are one of their references, letter for letter."""
    right = sum(prediction in group for prediction, group in zip(predictions, references, strict=True))
    return {"accuracy": right / len(predictions)}
