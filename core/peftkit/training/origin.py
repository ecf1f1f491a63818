"""What a checkpoint's numbers depend on: another recipe, other data or another base do not go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit import schemas
from peftkit.engine.memory_plan import MemoryPlan
from peftkit.engine.retrying import EARLIER, PLAN
from peftkit.errors import PeftkitError
from peftkit.recipe import Recipe
from peftkit.recipe import load as load_recipe
from peftkit.schemas import Count, Stored
from peftkit.training import checkpoint, folder
from peftkit.training.preparation import Prepared, digest
from peftkit.versions import versions

WHAT = {
    "data": "training data",
    "base": "base model",
    "packed": "calibrated weights of the base",
    "adapters": "files of the adapters",
    "start": "adapter that it went on from",
    "validation": "validation data",
    "scored": "inputs that are scored",
}
"""What each mark stands for, but the recipe and the versions."""


class BestFacts(Stored):
    """What is kept of the best adapter."""

    step: Count
    value: float | None
    waited: Count


class RunFacts(Stored):
    """What a run goes on from, beside what every checkpoint holds."""

    epoch: Count
    batch: Count
    optimizer: dict[str, bool | int | float | None]
    versions: dict[str, str]
    recipe: dict[str, Any] = {}
    best: BestFacts | None = None


def origin(prepared: Prepared, recipe: Recipe) -> dict[str, Any]:
    """Return the marks of a run that is set up, as JSON holds them."""
    return {
        "recipe": recipe.resolved(),
        "data": prepared.digest,
        "base": prepared.loaded.fingerprint,
        "packed": prepared.loaded.storage.get("calibrated"),
        "adapters": {name: child.origin["files"] for name, child in prepared.adaptation.children.items()} or None,
        "start": (prepared.adaptation.went_on_from or {}).get("files"),
        "validation": None if prepared.validation is None else digest(prepared.validation.encoded),
        "scored": None if prepared.scored is None else prepared.scored.digest,
        "versions": versions(),
    }


def check(path: Path, facts: Mapping[str, Any], prepared: Prepared, recipe: Recipe) -> None:
    """Refuse the checkpoint at `path` of another run, or one whose data or models are not there any more.

    Marks that earlier versions did not write are passed over.
    """
    place, advice = str(path / "state.json"), checkpoint.advice(path)
    schemas.check(RunFacts, facts, place, advice)
    for key in (PLAN, EARLIER):
        if facts.get(key) is not None:
            schemas.check(MemoryPlan, facts[key], f"{place}: {key}", advice)
    if recipe.train.keep_best is not None and facts.get("best") is None:
        raise PeftkitError(f"{place} lacks the best adapter so far, which train.keep_best asks for. {advice}")
    try:
        changed = folder.changes(load_recipe(facts["recipe"]), recipe) if "recipe" in facts else []
    except PeftkitError as error:
        raise PeftkitError(f"{place}: its recipe cannot be read: {str(error).rstrip('.')}. {advice}") from None
    if changed:
        raise PeftkitError(f"{path} is a checkpoint of another run: {'; '.join(changed)}. {advice}")
    now = origin(prepared, recipe)
    for key, what in WHAT.items():
        if key in facts and facts[key] != now[key]:
            raise PeftkitError(
                f"{path.parent.parent} cannot be resumed: the {what} changed since its checkpoint {path.name} was "
                "written. Bring the earlier files back, or begin another run with --output."
            )
