"""Adapters of several runs combined into a folder that is taken as a run: a recipe, and the adapter beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from peftkit import files
from peftkit import recipe as recipes
from peftkit.adaptation import Source, check_sources, combine, digests, find_adapter, save_adapter
from peftkit.assembly import assemble, read_trusted
from peftkit.errors import PeftkitError

CPU = torch.device("cpu")


def combine_runs(
    runs: Sequence[Path], output: Path, how: str, weights: Sequence[float] | None = None, rank: int | None = None
) -> dict[str, Any]:
    """Combine the adapters of `runs` (`peftkit.adaptation.combine`) into the new run folder `output`; returns a report.

    Each is a run folder or the adapter folder of one; without `weights` each counts as one. The recipe is that of the
    first run which has one, with the methods of the result. Nothing is left at `output` on an error.
    """
    if weights is not None and len(weights) != len(runs):
        raise PeftkitError(f"--weights: found {len(weights)} for {len(runs)} runs; allowed: one for each, in order.")
    given = weights or [1.0] * len(runs)
    sources = [Source(str(run), find_adapter(run), weight) for run, weight in zip(runs, given, strict=True)]
    described = check_sources(sources, how, rank)
    recipe = _recipe([source.folder for source in sources])
    with files.new_folder(output) as folder:
        base = assemble(recipe, bare=True, device=CPU)
        if described.get("fingerprint") not in (None, base.fingerprint):
            raise PeftkitError(
                f"{sources[0].name} was made for another base model ({described['name']}): the weights of {base.name} "
                "differ from it now."
            )
        result = combine(base.module, sources, how, rank)
        marks = [{"name": source.name, "weight": source.weight, "files": digests(source.folder)} for source in sources]
        origin = {"how": how, "rank": rank, "adapters": marks}
        save_adapter(result.adaptation, folder / "adapter", base.description, origin=origin)
        methods = result.adaptation.described
        chosen = tuple(recipes.MethodChoice(name=method.name, options=method.options()) for method in methods)
        start = recipe.quantization.model_copy(update={"init": None})
        recipe = recipe.model_copy(update={"method": chosen, "quantization": start, "rank": None, "output": None})
        files.write_text(folder / "recipe.yaml", recipe.to_yaml())
    report = {"how": how, "output": str(output), "base": base.name, "methods": [method.name for method in methods]}
    report |= {"adapters": origin["adapters"], "trainable_parameters": result.adaptation.trainable}
    return report if result.error is None else {**report, "relative_error": result.error}


def _recipe(adapters: Sequence[Path]) -> recipes.Recipe:
    """Read the recipe beside the first adapter that has one."""
    path = next((path for folder in adapters if (path := folder.parent / "recipe.yaml").is_file()), None)
    if path is None:
        raise PeftkitError(
            f"there is no recipe.yaml beside {adapters[0]} or the others, which says what model they stand on: name a "
            "run folder among them."
        )
    return read_trusted(path.parent)
