"""A recipe for a model, data and an amount of memory: the first shipped suggestion whose estimate fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from peftkit import resources
from peftkit.errors import PeftkitError
from peftkit.plan import Plan, plan
from peftkit.recipe import load
from peftkit.recipe.catalogue import headline
from peftkit.recipe.size import size_in_bytes
from peftkit.recipe.tree import Dumper, read_keys

FOLDER = "suggested"
"""Parts of recipes in `configs/`, in the order in which they are tried; the first comment of each is its reason."""


@dataclass(frozen=True)
class Suggestion:
    """A recipe that fits, and why it is as it is."""

    keys: dict[str, Any]
    reasons: dict[str, str]
    """By key of the recipe."""
    plan: Plan

    def to_yaml(self) -> str:
        """Write the recipe, with the reason above each key."""
        lines = []
        for key, value in self.keys.items():
            lines += [f"# {self.reasons[key]}"] if key in self.reasons else []
            lines.append(
                yaml.dump({key: value}, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120).rstrip()
            )
        return "\n".join(lines) + "\n"


def suggest(model: str, data: str, memory: str) -> Suggestion:
    """Return the first suggestion whose estimated peak is within `memory`, such as `8GB`; no weights are read.

    Raises PeftkitError for a wrong size, model or data file, and where nothing fits.
    """
    try:
        limit = size_in_bytes(memory)
    except ValueError as error:
        raise PeftkitError(f"--memory: {str(error).replace('auto, or a', 'a')}.") from None
    least = None
    for part in sorted((resources.folder("configs") / FOLDER).glob("*.yaml")):
        keys = read_keys(part)
        keys = {"model": model, **keys, "dataset": {**keys["dataset"], "path": data}, "train": {"memory": memory}}
        planned = plan(load(keys))
        peak = planned.memory.peak
        if peak <= limit:
            return Suggestion(keys, _reasons(headline(part), planned), planned)
        least = peak if least is None else min(least, peak)
    raise PeftkitError(
        f"{model}: no suggestion fits into {memory}: the least estimate is {(least or 0) / 1e9:.2f} GB. "
        "Allowed: more --memory, or a smaller model."
    )


def _reasons(quantization: str, planned: Plan) -> dict[str, str]:
    share = planned.trainable / planned.total
    rates = ", ".join(f"{rate:.3g} ({origin})" for rate, origin in planned.rates)
    steps = f"Examples: {planned.examples:,}; steps: {planned.steps:,} in {planned.epochs:g} epochs"
    return {
        "method": f"Every linear map of the layers is adapted: {planned.trainable:,} parameters, {share:.2%} of the "
        f"model. Learning rate: {rates}.",
        "quantization": quantization,
        "dataset": f"{steps}; the longest take up to {planned.memory.tokens:,} tokens.",
        "train": f"Memory plan: {planned.memory.memory_plan}.",
    }
