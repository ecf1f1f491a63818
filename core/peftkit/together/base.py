"""What runs must have in common to be trained together: the base, left as it is by all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftkit.adaptation import check_methods
from peftkit.assembly import Assembled, assemble, methods_of
from peftkit.errors import PeftkitError
from peftkit.method import expand
from peftkit.models.quantize import Quantization
from peftkit.recipe import Recipe
from peftkit.recipe.entries import entry
from peftkit.strategies import DEFAULT
from peftkit.training.folder import unequal

ALONE = "Train it by itself, without --together."


def check(recipes: Sequence[tuple[str, Recipe]]) -> Assembled:
    """Refuse recipes, each with its run's name, that differ in their base or change it; returns it without weights.

    Raises PeftkitError that names the run and the keys or the method.
    """
    (first, lead), *others = recipes
    for name, recipe in others:
        apart = unequal(_base(lead), _base(recipe))
        different = [f"{key} is {one!r} in {first} and {other!r} in {name}" for key, one, other in apart]
        if different:
            raise PeftkitError(
                f"{first} and {name} do not stand on the same base: {'; '.join(different)}. Runs that are trained "
                "together share model, quantization, train.precision and train.device."
            )
    outline = assemble(lead, weights=False, bare=True)
    for name, recipe in recipes:
        if not recipe.train.packing:
            raise PeftkitError(
                f"{name} cannot be trained together with others: train.packing is false, and tokens of several runs "
                f"share a batch without padding only. Set it to true, or leave {name} out."
            )
        if recipe.train.memory is not None:
            raise PeftkitError(
                f"{name} cannot be trained together with others: train.memory is {recipe.train.memory!r}, and the "
                f"memory of a batch that several runs share cannot be one run's. Set it to null. {ALONE}"
            )
        if recipe.train.precision == "fp16":
            raise PeftkitError(
                f"{name} cannot be trained together with others: train.precision is 'fp16', whose loss scale is one "
                f"run's. Set it to fp32 or bf16. {ALONE}"
            )
        if recipe.train.compile:
            raise PeftkitError(
                f"{name} cannot be trained together with others: train.compile is true, and passes over a base that "
                f"several runs share are others in each step. Set it to false. {ALONE}"
            )
        if (strategy := entry(recipe.train.strategy)[0]) != DEFAULT:
            raise PeftkitError(
                f"{name} cannot be trained together with others: train.strategy is {strategy!r}, whose steps have "
                f"passes of their own. Set it to {DEFAULT}. {ALONE}"
            )
        methods = methods_of(recipe, outline.tokenizer)
        try:
            checked = check_methods(outline.module, methods)
        except PeftkitError as error:
            raise PeftkitError(f"{name}: {error}") from None
        for method, (_, own) in zip(expand(methods), checked, strict=True):
            changed = f"trains the model's own {own[0]}" if own else None
            changed = "starts by changing the frozen weights" if method.splits_base else changed
            changed = changed if method.shares_passes else "adds to the loss of each pass"
            if changed:
                raise PeftkitError(
                    f"{name} cannot be trained together with others: the method '{method.name}' {changed}, which the "
                    f"other runs share. {ALONE}"
                )
    return outline


def _base(recipe: Recipe) -> dict[str, Any]:
    """Return the keys that decide the base, which where examples decide it are those of the data too."""
    train: dict[str, Any] = {"precision": recipe.train.precision, "device": recipe.train.device}
    base = {"model": recipe.model.model_dump(), "quantization": recipe.quantization.model_dump(), "train": train}
    if Quantization.of(recipe.quantization).calibrated or recipe.pruning is not None:
        base |= {
            "pruning": recipe.pruning,
            "calibration": recipe.calibration.model_dump(),
            "dataset": recipe.dataset.model_dump(),
        }
        train["max_length"] = recipe.train.max_length
    return base
