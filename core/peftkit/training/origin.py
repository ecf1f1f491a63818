"""What a checkpoint's numbers depend on: another recipe, other data or another base do not go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit.errors import PeftkitError
from peftkit.recipe import Recipe
from peftkit.recipe import load as load_recipe
from peftkit.training import checkpoint, folder
from peftkit.training.preparation import Prepared, digest
from peftkit.versions import versions

WHAT = {
    "data": "training data",
    "base": "base model",
    "adapters": "files of the adapters",
    "start": "adapter that it went on from",
    "validation": "validation data",
    "scored": "inputs that are scored",
}
"""What each mark stands for, but the recipe and the versions."""


def origin(prepared: Prepared, recipe: Recipe) -> dict[str, Any]:
    """Return the marks of a run that is set up, as JSON holds them."""
    return {
        "recipe": recipe.resolved(),
        "data": prepared.digest,
        "base": prepared.loaded.fingerprint,
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
    changed = folder.changes(load_recipe(facts["recipe"]), recipe) if "recipe" in facts else []
    if changed:
        raise PeftkitError(f"{path} is a checkpoint of another run: {'; '.join(changed)}. {checkpoint.advice(path)}")
    now = origin(prepared, recipe)
    for key, what in WHAT.items():
        if key in facts and facts[key] != now[key]:
            raise PeftkitError(
                f"{path.parent.parent} cannot be resumed: the {what} changed since its checkpoint {path.name} was "
                "written. Bring the earlier files back, or begin another run with --output."
            )
