"""What a comparison sets side by side: each entry's methods, sized by the budget, or the reason why it is left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit import adapt, budget
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS, Method
from peftkit.models.load import load as load_model
from peftkit.recipe import CompareSection, MethodChoice, Recipe

TOLERANCE = 0.01
"""How far from the budget a method may be before the table says so."""


@dataclass(frozen=True)
class Entry:
    """One line of the comparison."""

    label: str
    methods: tuple[Method, ...]
    seeds: tuple[int, ...] = ()
    note: str = ""
    """What a reader must know of its size."""
    refused: str | None = None
    """Why it cannot be trained on this model."""

    @property
    def slug(self) -> str:
        """The label as a folder's name."""
        return re.sub(r"[^A-Za-z0-9.=+-]+", "_", self.label).strip("_")[:100]

    def recipe(self, base: Recipe, seed: int) -> Recipe:
        """Return the recipe of the run of one seed: `base` with these methods."""
        chosen = tuple(MethodChoice(name=method.name, options=method.options()) for method in self.methods)
        train = base.train.model_copy(update={"seed": seed})
        changes = {"method": chosen, "train": train, "compare": CompareSection(), "output": None}
        return base.model_copy(update=changes)

    def folder(self, comparison: Path, seed: int) -> Path:
        """Return the run folder of one seed."""
        return comparison / "runs" / self.slug / f"seed-{seed}"


def entries(recipe: Recipe) -> list[Entry]:
    """Build the comparison's entries without reading a weight of the model.

    Raises PeftkitError where nothing is named, an entry is named twice, or none suits the model.
    """
    section = recipe.compare
    if not section.methods:
        raise PeftkitError(
            "nothing is compared: name methods with --methods lora,dora or in the recipe's compare.methods."
        )
    model = load_model(recipe.model, device="meta", weights=False, quantization=recipe.quantization).model
    seeds = tuple(recipe.train.seed + number for number in range(section.seeds))
    found = [_entry(choices, model, section.budget, seeds) for choices in section.methods]
    twice = next((entry.label for entry in found if [other.slug for other in found].count(entry.slug) > 1), None)
    if twice is not None:
        raise PeftkitError(f"compare.methods names {twice} twice: leave one of them out.")
    if all(entry.refused for entry in found):
        raise PeftkitError(f"none of the methods suits the model: {'; '.join(str(entry.refused) for entry in found)}")
    return found


def _entry(choices: Sequence[MethodChoice], model: Any, size: float | None, seeds: tuple[int, ...]) -> Entry:
    methods = tuple(METHODS[choice.name].from_options(choice.options) for choice in choices)
    label, note = " + ".join(map(describe, methods)), ""
    try:
        adapt.check(model, methods)
        if size is not None:
            methods, note = _sized(methods, Layout(model), size)
            adapt.check(model, methods)
    except PeftkitError as error:
        return Entry(label, methods, refused=str(error))
    return Entry(label, methods, seeds, note)


def _sized(methods: Sequence[Method], layout: Layout, size: float) -> tuple[tuple[Method, ...], str]:
    """Give each part of an entry an equal share of the budget; say where it cannot be met."""
    sized, notes = [], []
    for method in methods:
        found, deviation = budget.solve(type(method), layout, round(size / len(methods)), method.options())
        sized.append(found)
        if method.size is None:
            notes.append("fixed size")
        else:
            notes.append(f"{method.size} {_written(getattr(found, method.size))}")
            notes[-1] += f" ({deviation:+.1%})" if abs(deviation) > TOLERANCE else ""
    return tuple(sized), ", ".join(notes)


def describe(method: Method) -> str:
    """Name a method with the options that are not its defaults: `lora (rank 16, targets linear)`."""
    defaults = type(method).from_options({}).options()
    changed = {key: value for key, value in method.options().items() if value != defaults[key]}
    told = ", ".join(f"{key} {_written(value)}" for key, value in changed.items())
    return f"{method.name} ({told})" if told else method.name


def _written(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
