"""What a comparison sets side by side: each entry's methods, sized by the budget, or the reason why it is left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftkit import budget
from peftkit.adaptation import check_methods
from peftkit.assembly import assemble
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS, Method
from peftkit.recipe import CompareSection, MethodChoice, Recipe
from peftkit.report.labels import describe, written

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
    fraction: float | None = None
    """The part of the training split that it is trained on; None is what the recipe says."""

    @property
    def slug(self) -> str:
        """The label as a folder's name."""
        return re.sub(r"[^A-Za-z0-9.=+-]+", "_", self.label).strip("_")[:100]

    def recipe(self, base: Recipe, seed: int) -> Recipe:
        """Return the recipe of the run of one seed: `base` with these methods.

        Where the comparison names fractions, each seed draws parts of its own, so that the spread over seeds is that
        of the data too.
        """
        chosen = tuple(MethodChoice(name=method.name, options=method.options()) for method in self.methods)
        train = base.train.model_copy(update={"seed": seed})
        changes = {"method": chosen, "train": train, "compare": CompareSection(), "output": None}
        if self.fraction is not None:
            drawn = {"fraction": self.fraction, "seed": base.dataset.seed + seed - base.train.seed}
            changes["dataset"] = base.dataset.model_copy(update=drawn)
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
    if recipe.adapter is not None:
        raise PeftkitError(
            f"the recipe goes on from the adapter in {recipe.adapter}, and methods are compared from their own starts: "
            "add adapter=null."
        )
    model = assemble(recipe, weights=False, bare=True).model
    seeds = tuple(recipe.train.seed + number for number in range(section.seeds))
    built = [_entry(choices, model, section.budget, seeds) for choices in section.methods]
    compared = [
        replace(entry, label=f"{entry.label} on {100 * fraction:g} %", fraction=fraction)
        for fraction in section.fractions
        for entry in built
    ] or built
    slugs = [entry.slug for entry in compared]
    twice = next((entry.label for entry in compared if slugs.count(entry.slug) > 1), None)
    if twice is not None:
        raise PeftkitError(f"compare.methods names {twice} twice: leave one of them out.")
    if all(entry.refused for entry in compared):
        reasons = "; ".join(str(entry.refused) for entry in compared)
        raise PeftkitError(f"none of the methods suits the model: {reasons}")
    return compared


def _entry(choices: Sequence[MethodChoice], model: Any, size: float | None, seeds: tuple[int, ...]) -> Entry:
    methods = tuple(METHODS[choice.name].from_options(choice.options) for choice in choices)
    label, note = " + ".join(map(describe, methods)), ""
    try:
        check_methods(model, methods)
        if size is not None:
            methods, note = _sized(methods, Layout(model), size)
            check_methods(model, methods)
    except PeftkitError as error:
        return Entry(label, methods, refused=str(error))
    return Entry(label, methods, seeds, note)


def _sized(methods: Sequence[Method], layout: Layout, size: float) -> tuple[tuple[Method, ...], str]:
    """Give each part of an entry an equal share of the budget; say where it cannot be met."""
    sized, notes = [], []
    for method in methods:
        fitted, deviation = budget.solve(type(method), layout, round(size / len(methods)), method.options())
        sized.append(fitted)
        if method.size is None:
            notes.append("fixed size")
        else:
            notes.append(f"{method.size} {written(getattr(fitted, method.size))}")
            notes[-1] += f" ({deviation:+.1%})" if abs(deviation) > TOLERANCE else ""
    return tuple(sized), ", ".join(notes)
