"""Adapters of other libraries as `adapter` and `adapters` of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit import files
from peftkit.interchange.imported import as_run
from peftkit.recipe.opened import OPENERS


def opened(named: str, base: Mapping[str, Any]) -> Path | None:
    """Return the run of what is named, made on `base`; None where it is a run, or nothing that is known."""
    place = files.expanded(named)
    run, _ = as_run(place, base=base)
    return None if run == place else run


OPENERS.add("foreign", opened)
