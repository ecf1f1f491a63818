"""Pearson's correlation of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftkit.metrics import UnavailableError, metric


@metric("pearson", "pearson")
def pearson(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `pearson` in [-1, 1]; raises UnavailableError for what is no number, and where all are one."""
    return {"pearson": defined("pearson", correlation(*numbers("pearson", predictions, references)))}


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return the correlation of x [n] and y [n]; nan where either is constant, as scipy does."""
    x, y = x - x.mean(), y - y.mean()
    spread = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.clip(x @ y / spread, -1.0, 1.0)) if spread else float("nan")


def numbers(
    name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Read predictions and first references as numbers [n]."""
    try:
        return np.array([float(p) for p in predictions]), np.array([float(group[0]) for group in references])
    except ValueError as error:
        raise UnavailableError(f"{name}: predictions and references are numbers: {error}.") from None


def defined(name: str, value: float) -> float:
    """Return the value; UnavailableError for nan."""
    if np.isnan(value):
        raise UnavailableError(f"{name} is not defined where all predictions, or all references, are one number.")
    return value
