"""A sweep: one recipe with lists of values for some of its keys, as the recipes that their combinations make."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from peftkit.errors import PeftkitError
from peftkit.recipe.loading import load, load_whole
from peftkit.recipe.sections import Recipe
from peftkit.recipe.tree import Dumper

RUNS = 100
"""Runs of a sweep at most."""
WORD = 40
"""Characters of a value in a run's name at most."""


def load_sweep(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """Load a recipe and return the recipes of its sweep by name, such as `rank-2_learning_rate-0.0003`.

    A recipe without a sweep comes back as it is, under the empty name. Each value is the same as an override of its
    key. Raises PeftkitError as `load` does, and for a key that is both swept and given in `overrides`.
    """
    whole = load_whole(source, overrides)
    if not whole.sweep:
        return {"": whole}
    given = {text.partition("=")[0].strip() for text in overrides}
    for key, values in whole.sweep.items():
        if key in given:
            raise PeftkitError(
                f"{key} is given and swept: leave out {key}=…, or write sweep={{{key}: […]}} to sweep other values."
            )
        if key.split(".")[0] in ("sweep", "include", "output"):
            raise PeftkitError(f"sweep.{key}: found a key that every run shares; allowed: any key but that.")
        if len({_written(value) for value in values}) < len(values):
            raise PeftkitError(f"sweep.{key}: found a value twice in {_written(list(values))}; keep one of them.")
    count = 1
    for values in whole.sweep.values():
        count *= len(values)
    if count > RUNS:
        raise PeftkitError(f"sweep: found {count} combinations; allowed: at most {RUNS} runs at once.")
    recipes: dict[str, Recipe] = {}
    for values in product(*whole.sweep.values()):
        chosen = dict(zip(whole.sweep, values, strict=True))
        texts = [f"{key}={_written(value)}" for key, value in chosen.items()]
        name = _name(chosen)
        name = f"{name}_{len(recipes) + 1}" if name in recipes else name
        recipes[name] = load(source, [*overrides, *texts, "sweep={}"])
    return recipes


def _written(value: Any) -> str:
    """Write a value as YAML on one line."""
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _name(chosen: Mapping[str, Any]) -> str:
    """Name a combination by its values, as a folder may be called."""
    last = [key.rpartition(".")[2] for key in chosen]
    keys = [short if last.count(short) == 1 else key for short, key in zip(last, chosen, strict=True)]
    pairs = zip(keys, chosen.values(), strict=True)
    return "_".join(f"{_word(key)}-{_word(_written(value))}" for key, value in pairs)


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", text).strip("-.")[:WORD] or "x"
