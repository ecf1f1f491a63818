"""Adapters of several runs combined into a folder that is taken as a run: a recipe, and the adapter beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftkit import files
from peftkit import recipe as recipes
from peftkit.adaptation import DESCRIPTION, TENSORS, Source, check_sources, combine, save_adapter
from peftkit.errors import PeftkitError
from peftkit.models.load import load as load_base


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
    sources = [Source(str(run), _adapter_folder(run), weight) for run, weight in zip(runs, given, strict=True)]
    described = check_sources(sources, how, rank)
    recipe = _recipe([source.folder for source in sources])
    with files.new_folder(output) as folder:
        base = load_base(recipe.model, quantization=recipe.quantization)
        if described.get("fingerprint") not in (None, base.fingerprint):
            raise PeftkitError(
                f"{sources[0].name} was made for another base model ({described['name']}): the weights of {base.name} "
                "differ from it now."
            )
        result = combine(base.model, sources, how, rank)
        description = {"name": base.name, "fingerprint": base.fingerprint, "quantization": base.storage}
        origin = {"how": how, "rank": rank, "adapters": [_origin(source) for source in sources]}
        save_adapter(result.adaptation, folder / "adapter", description, origin=origin)
        methods = result.adaptation.described
        chosen = tuple(recipes.MethodChoice(name=method.name, options=method.options()) for method in methods)
        start = recipe.quantization.model_copy(update={"init": None})
        recipe = recipe.model_copy(update={"method": chosen, "quantization": start, "rank": None, "output": None})
        files.write_text(folder / "recipe.yaml", recipe.to_yaml())
    report = {"how": how, "output": str(output), "base": base.name, "methods": [method.name for method in methods]}
    report |= {"adapters": origin["adapters"], "trainable_parameters": result.adaptation.trainable}
    return report if result.error is None else {**report, "relative_error": result.error}


def _adapter_folder(run: Path) -> Path:
    """Return the folder with the adapter: the run's, or `run` itself."""
    for folder in (run / "adapter", run):
        if (folder / DESCRIPTION).is_file():
            return folder
    if (run / "recipe.yaml").is_file():
        raise PeftkitError(f"the run {run} has no adapter: its training has not ended. Resume it first.")
    raise PeftkitError(f"{run} is neither a run folder nor an adapter folder: there is no {DESCRIPTION} in it.")


def _recipe(adapters: Sequence[Path]) -> recipes.Recipe:
    """Read the recipe beside the first adapter that has one."""
    path = next((path for folder in adapters if (path := folder.parent / "recipe.yaml").is_file()), None)
    if path is None:
        raise PeftkitError(
            f"there is no recipe.yaml beside {adapters[0]} or the others, which says what model they stand on: name a "
            "run folder among them."
        )
    return recipes.load(path)


def _origin(source: Source) -> dict[str, Any]:
    """Return what is written of a source: its name, weight, and the SHA-256 of its files."""
    marks = {name: hashlib.sha256((source.folder / name).read_bytes()).hexdigest() for name in (DESCRIPTION, TENSORS)}
    return {"name": source.name, "weight": source.weight, "files": marks}
