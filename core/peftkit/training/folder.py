"""What a run folder may hold before a run: nothing for a new one, the same recipe for one that goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peftkit import files, lock
from peftkit.adaptation import DESCRIPTION, TENSORS
from peftkit.errors import PeftkitError
from peftkit.models import trust
from peftkit.recipe import BASE, Recipe
from peftkit.recipe import load as load_recipe
from peftkit.training import checkpoint

FREE = ("output", "eval", "generation", "compare", "train.keep_checkpoints", "train.save_every", "train.log")
"""Keys that a resumed run may change: they have no part in what is learned."""


WRITTEN = ("recipe.yaml", "log.jsonl", f"adapter/{DESCRIPTION}", f"adapter/{TENSORS}")
"""What a finished run holds at least, beside its summary."""


def check(run: Path, recipe: Recipe, resume: bool) -> tuple[Recipe, bool]:
    """Refuse a folder in which the run cannot begin, or go on; returns its recipe, and whether it is finished."""
    if not resume:
        check_new(run)
        return recipe, False
    return check_resumed(run, recipe), (run / "summary.json").is_file()


def check_written(run: Path, *names: str) -> None:
    """Raise PeftkitError where one of the files of a run is not there."""
    absent = [name for name in names or WRITTEN if not (run / name).is_file()]
    if absent:
        raise PeftkitError(
            f"{run} lacks {', '.join(absent)}, removed while the run was going on: its result is not whole. "
            "Leave a run folder as it is until the run has ended."
        )


def check_new(run: Path) -> None:
    """Refuse a folder that holds an earlier run or cannot be written; measurements of the base model may be there.

    So may what a process left that was killed before it had written the recipe, a calibrated base among it.
    """
    if run.exists() and not run.is_dir():
        raise PeftkitError(f"{run} is a file, and a run needs a folder: name another with --output.")
    passed_over = {"eval", BASE, lock.NAME, *(path.name for path in files.leftovers(run))}
    present = sorted(item.name for item in run.iterdir() if item.name not in passed_over) if run.is_dir() else []
    if present:
        resumable = "give --resume to continue that run, " if (run / "recipe.yaml").is_file() else ""
        raise PeftkitError(
            f"the run folder {run} already holds {', '.join(present[:5])}: {resumable}"
            "name another folder with --output, or remove it first. Nothing in it was touched."
        )
    place = files.followed(run)
    there = next(path for path in (place, *place.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise PeftkitError(
            f"the run folder {run} cannot be written: no permission in {there}. Name another with --output."
        )


def with_storage(recipe: Recipe, storage: Mapping[str, Any]) -> Recipe:
    """Return the recipe with the formats that its budget was spent on beside the budget: it is spent once."""
    section = recipe.quantization
    if section.budget is None or section.modules:
        return recipe
    spent = type(section).model_validate({**storage, "init": section.init, "budget": section.budget})
    return recipe.model_copy(update={"quantization": spent})


def as_begun(recipe: Recipe, checkpoints: Path) -> Recipe:
    """Return the recipe with the precision that its run has been computed in, where it leaves that to the machine.

    It is measured once: another machine, or a busy one, may choose otherwise.
    """
    decided = checkpoint.precision(checkpoints)
    if decided is None or recipe.train.precision != "auto":
        return recipe
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": decided})})


def check_resumed(run: Path, recipe: Recipe) -> Recipe:
    """Refuse to continue in a folder that holds no run, or one of another recipe; return the recipe to continue.

    It is the given one, with the formats that the run's budget of bits was spent on.
    """
    if not (run / "recipe.yaml").is_file():
        raise PeftkitError(f"there is no run to resume: {run} {_without_run(run)} name the run's folder with --output.")
    # Through the recipe: keys of other versions have their defaults then, or say why they are not there any more.
    earlier = load_recipe(run / "recipe.yaml", agreed=False)
    stored = earlier.resolved().get("quantization")
    if isinstance(stored, Mapping) and recipe.quantization.budget == stored.get("budget"):
        recipe = with_storage(recipe, {key: stored.get(key) for key in ("format", "options", "modules")})
    changed = changes(earlier, recipe)
    if changed:
        raise PeftkitError(
            f"the recipe is not the one of the run in {run}: {'; '.join(changed)}. A resumed run keeps its recipe "
            f"(only {', '.join(FREE)} may change): undo the changes, or begin another run with --output."
        )
    trust.check(earlier.model, run / "recipe.yaml")
    return recipe


def _without_run(run: Path) -> str:
    """Say what a folder is that holds no run, and whether one can begin there."""
    held = run.is_dir() and any(run.iterdir())
    state = "holds no recipe.yaml" if held else "is empty" if run.is_dir() else "does not exist"
    try:
        check_new(run)
    except PeftkitError:
        return f"{state}:"
    return f"{state}. Leave out --resume to begin one, or"


def changes(earlier: Recipe, now: Recipe) -> list[str]:
    """Tell each key whose value matters to a run and differs."""
    return list(differences(earlier.resolved(), now.resolved()))


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Tell each key whose value matters to the run and differs."""
    for key, before, after in unequal(earlier, now):
        if not any(key == name or key.startswith(name + ".") for name in FREE):
            yield f"{key} was {before!r} and is {after!r} now"


def unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Iterate over (dotted key, its value in one, in the other) where they differ; None where there is none."""
    before, after = dict(_leaves(one)), dict(_leaves(other))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield key, before.get(key), after.get(key)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
