"""What a recipe may name and other parts of the package register; what takes torch is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.optim import OPTIMIZERS
from peftkit.registry import Registry
from peftkit.tasks import TASKS

if TYPE_CHECKING:
    from pathlib import Path

    from peftkit.loggers import Logger
    from peftkit.method import Method
    from peftkit.objectives import Objective
    from peftkit.pruning import Pruner
    from peftkit.quantization.quantizer import Quantizer
    from peftkit.strategies import Strategy

NO_FORMAT = "none"
"""The storage format that leaves weights as they are."""


def dataset_names() -> list[str]:
    """List the data sets: every task, and every task's bundled set."""
    names = TASKS.names()
    return [*names, *(f"bundled/{name}" for name in names)]


def optimizer_names() -> list[str]:
    """List what can take the steps."""
    return OPTIMIZERS.names()


def methods() -> Registry[type[Method]]:
    """Return what can be trained."""
    from peftkit.method import METHODS

    return METHODS


def quantizers() -> Registry[type[Quantizer]]:
    """Return how frozen weights can be stored, beside as they are."""
    from peftkit.quantization.quantizer import QUANTIZERS

    return QUANTIZERS


def check_adapter(run: Path) -> None:
    """Raise PeftkitError where a folder is not that of a run or an adapter, or does not describe one."""
    from peftkit.adaptation import describe_adapter, find_adapter

    describe_adapter(find_adapter(run))


def described_methods(run: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the methods of a trained adapter, each with all its options; `run` is the folder of a run or an adapter.

    Raises PeftkitError where it is not, or names a method that is not there.
    """
    from peftkit.adaptation import describe_adapter, find_adapter

    chosen = [(each["name"], each["options"]) for each in describe_adapter(find_adapter(run))["methods"]]
    return [(name, methods()[name].from_options(options).options()) for name, options in chosen]


def objectives() -> Registry[type[Objective]]:
    """Return what can be minimised."""
    from peftkit.objectives import OBJECTIVES

    return OBJECTIVES


def strategies() -> Registry[type[Strategy]]:
    """Return how a step can be made."""
    from peftkit.strategies import STRATEGIES

    return STRATEGIES


def loggers() -> Registry[type[Logger]]:
    """Return where the figures of a run can go beside its log."""
    from peftkit.loggers import LOGGERS

    return LOGGERS


def pruners() -> Registry[type[Pruner]]:
    """Return how weights can be chosen that are set to zero."""
    from peftkit.pruning import PRUNERS

    return PRUNERS


def quantization_formats() -> list[str]:
    """List the storage formats of the frozen weights."""
    return [NO_FORMAT, *quantizers().names()]
