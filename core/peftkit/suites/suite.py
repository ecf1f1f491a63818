"""What a suite is: named parts with data and metrics of their own, which are scored on a model as it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from peftkit.assembly import Assembled
from peftkit.recipe import Recipe
from peftkit.registry import Registry

Score = dict[str, Any]
"""A score: {task, metric, filter, value, stderr, shots, inputs, version}."""
Part = Callable[[Assembled, int | None], list[Score]]
"""Scores a model on a part of a suite; a limit is the most inputs of each task."""


class Suite:
    """A suite of `peft eval --suite`; an entry says how it is asked for (`wanted`) and what its names open."""

    wanted: ClassVar[str] = ""
    """How it is asked for, as the end of an error that says so."""

    def named(self, listed: str) -> list[str]:
        """Return the names in what stands behind the colon, each once; none where nothing does."""
        return list(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))

    def open(self, names: Sequence[str], path: Path | None, recipe: Recipe) -> Mapping[str, Part]:
        """Return the parts of these names; PeftkitError for a name or a file that cannot be had."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        """Return the versions of what it computes with, beside those of every report."""
        return {}


SUITES: Registry[Suite] = Registry("suite", "peftkit.suites.kinds")
