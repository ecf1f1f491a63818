"""The bundled data sets: a module registers the writer of one set, in the official format of its task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from peftkit.registry import Registry

SETS: Registry[Callable[[Path, int], None]] = Registry("bundled data set", "synthetic.sets")
