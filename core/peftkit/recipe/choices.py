"""The names that a recipe may use for things which other parts of the package register."""

from __future__ import annotations

from typing import Any

from peftkit.registry import Registry

NO_FORMAT = "none"
"""The storage format that leaves weights as they are."""


def dataset_names() -> list[str]:
    """List the data sets: every task, and every task's bundled set."""
    from peftkit.tasks import TASKS

    names = TASKS.names()
    return [*names, *(f"bundled/{name}" for name in names)]


def optimizer_names() -> list[str]:
    """List what can take the steps."""
    from peftkit.optim import OPTIMIZERS

    return OPTIMIZERS.names()


def objectives() -> Registry[Any]:
    """Return what can be minimised."""
    from peftkit.objectives import OBJECTIVES

    return OBJECTIVES


def strategies() -> Registry[Any]:
    """Return how a step can be made."""
    from peftkit.strategies import STRATEGIES

    return STRATEGIES


def quantization_formats() -> list[str]:
    """List the storage formats of the frozen weights."""
    from peftkit.quantization.quantizer import QUANTIZERS

    return [NO_FORMAT, *QUANTIZERS.names()]
