"""Several methods on the same data in the same order: train, evaluate, and set side by side."""

from __future__ import annotations

import logging
from pathlib import Path

from peftkit import files, lock
from peftkit.comparison.entries import Entry, entries
from peftkit.comparison.results import read
from peftkit.comparison.runs import ComparisonStopped, ComparisonWatcher, EntryRun, go, plan
from peftkit.models import trust
from peftkit.recipe import Recipe
from peftkit.report import write
from peftkit.report.results import Comparison

__all__ = ["ComparisonStopped", "ComparisonWatcher", "Entry", "EntryRun", "compare", "entries"]


BUSY = (
    "the folder {} is in use: {} is comparing in it. Wait for its end, stop it, or name another folder with --output. "
    "Nothing in it was touched."
)


def compare(recipe: Recipe, folder: Path, watcher: ComparisonWatcher) -> Comparison:
    """Run what `recipe.compare` names into `folder` and write the report there; what is finished is kept.

    `folder` gets `runs/` (ordinary run folders), `recipes/`, `logs/`, and comparison.md, .csv, .png and .html, which a
    comparison that is stopped writes too, from what it has. Raises PeftkitError for what is wrong in the recipe, and
    ComparisonStopped on a signal, and where the output is lost.
    """
    with lock.held(folder, logging.getLogger("peftkit").warning, busy=BUSY):
        trust.remember(recipe.model)
        compared = entries(recipe)
        runs = plan(recipe, compared, folder)
        files.write_text(folder / "recipe.yaml", recipe.to_yaml())
        try:
            go(runs, folder, watcher)
        finally:
            result = read(recipe, compared, runs)
            write(result, folder)
    return result
