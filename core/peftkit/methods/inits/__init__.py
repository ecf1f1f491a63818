"""How a low-rank pair starts: one file for each choice, a function on the adapter that holds A, B, scale and site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peftkit.registry import Registry

INITS: Registry[Callable[[Any], None]] = Registry("initialisation", "peftkit.methods.inits")
