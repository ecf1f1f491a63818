"""What a run folder may hold before a run: nothing for a new one, the same recipe for one that goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.recipe import Recipe
from peftkit.recipe import load as load_recipe

FREE = ("output", "eval", "generation", "compare", "train.keep_checkpoints", "train.save_every", "train.tensorboard")
"""Keys that a resumed run may change: they have no part in what is learned."""


def check_new(run: Path) -> None:
    """Refuse a folder that holds an earlier run or cannot be written; measurements of the base model may be there."""
    if run.exists() and not run.is_dir():
        raise PeftkitError(f"{run} is a file, and a run needs a folder: name another with --output.")
    present = sorted(item.name for item in run.iterdir() if item.name != "eval") if run.is_dir() else []
    if present:
        raise PeftkitError(
            f"the run folder {run} already holds {', '.join(present[:5])}: give --resume to continue that run, "
            "name another folder with --output, or remove it first. Nothing in it was touched."
        )
    there = next(path for path in (run, *run.absolute().parents) if path.exists())
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


def check_resumed(run: Path, recipe: Recipe) -> Recipe:
    """Refuse to continue in a folder that holds no run, or one of another recipe; return the recipe to continue.

    It is the given one, with the formats that the run's budget of bits was spent on.
    """
    if not (run / "recipe.yaml").is_file():
        state = "is empty" if run.is_dir() and not any(run.iterdir()) else "holds no recipe.yaml"
        state = state if run.exists() else "does not exist"
        raise PeftkitError(
            f"there is no run to resume: {run} {state}. Leave out --resume to begin one, or name the run's folder "
            "with --output."
        )
    _parse(files.read_text(run / "recipe.yaml"), run / "recipe.yaml")
    # Through its recipe: keys of other versions have their defaults then, or say why they are not there any more.
    earlier = _parse(load_recipe(run / "recipe.yaml").to_yaml(), run)
    stored = earlier.get("quantization")
    if isinstance(stored, Mapping) and recipe.quantization.budget == stored.get("budget"):
        recipe = with_storage(recipe, {key: stored.get(key) for key in ("format", "options", "modules")})
    changes = list(differences(earlier, _parse(recipe.to_yaml(), run)))
    if changes:
        raise PeftkitError(
            f"the recipe is not the one of the run in {run}: {'; '.join(changes)}. A resumed run keeps its recipe "
            f"(only {', '.join(FREE)} may change): undo the changes, or begin another run with --output."
        )
    return recipe


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


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PeftkitError(f"{path} is not valid YAML ({error}): it was changed after the run wrote it.") from None
    if not isinstance(tree, dict):
        raise PeftkitError(f"{path} holds no recipe: it was changed after the run wrote it.")
    return tree
