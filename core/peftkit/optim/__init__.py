"""Optimizers by name: each entry builds a torch optimizer from an adaptation's parameter groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from peftkit.registry import Registry

if TYPE_CHECKING:
    from torch.optim import Optimizer

    Builder = Callable[..., Optimizer]

OPTIMIZERS: Registry[Callable[..., Any]] = Registry("optimizer", "peftkit.optim")
DEFAULT = "adamw"
