"""What becomes of a base before anything is attached to it: weights pruned, and packed for what examples show.

It is done once for a run, kept beside it, and found again by every later command.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftkit.data.examples import Examples
from peftkit.data.subset import chosen
from peftkit.data.template import choose
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.models import calibrated_folder
from peftkit.models.calibrate import calibrate
from peftkit.models.loaded import LoadedModel
from peftkit.models.prune import apply, filled, prune
from peftkit.models.prune import chosen as maps_of
from peftkit.models.quantize import Quantization, quantize
from peftkit.objectives import OBJECTIVES
from peftkit.pruning import PRUNERS, Pruner
from peftkit.recipe import BASE, Recipe
from peftkit.recipe.entries import entry
from peftkit.tasks.source import load as load_data

Rows = Callable[[], list[Tensor]]


def pruner_of(recipe: Recipe) -> Pruner | None:
    """Build the way to prune that a recipe chooses; None where it prunes nothing."""
    if recipe.pruning is None:
        return None
    name, options = entry(recipe.pruning)
    return PRUNERS[name].from_options(options)


def described(base: LoadedModel, recipe: Recipe) -> LoadedModel:
    """Return a base without weights with the pruning of its recipe in what it says of itself.

    Raises PeftkitError for maps that cannot be pruned so.
    """
    pruner = pruner_of(recipe)
    if pruner is None:
        return base
    maps_of(Layout(base.module), pruner)
    return replace(base, storage={**base.storage, **_pruning(pruner)})


def settled(base: LoadedModel, recipe: Recipe, keep: Sequence[Path] = (), *, original: bool = False) -> LoadedModel:
    """Prune a base as its recipe says and pack what the loading has left dense for that; it changes in place.

    With `calibration.weights` what is kept there is taken, else it is decided on examples now. Its mark stands in the
    storage that is returned, and the folders `keep` get what another start needs. An `original` base is pruned and not
    packed. Raises PeftkitError for a base that is packed already and is to be pruned, data that cannot be read or give
    no example, weights that cannot be pruned or packed, and kept ones that are damaged or another base's.
    """
    quantization = Quantization() if original else Quantization.of(recipe.quantization)
    pruner, formats = pruner_of(recipe), quantization.description()
    packed = quantization.calibrated and {key: base.storage.get(key) for key in formats} != formats
    if pruner is None and not packed:
        return base
    if pruner is not None:
        _check_dense(base)
    weights, module = recipe.calibration.weights, base.module
    place = None if weights is None else Path(weights) / BASE
    kept = None if place is None else calibrated_folder.read(place, Quantization.of(recipe.quantization), base)
    rows = cache(lambda: examples(recipe, base))
    if kept is not None:
        _check_pruning(kept, pruner)
        apply(module, kept.masks)
    masks = kept.masks if kept else _pruned(base, pruner, rows)
    if pruner is not None and quantization.packs:
        quantize(module, quantization.uncalibrated)
    if packed and kept is not None:
        kept.fill(module, quantization)
    elif packed:
        calibrate(module, quantization, rows())
    if filled(module, masks):
        raise PeftkitError(
            f"pruning: {quantization.in_words()} has no zero, and pruned weights would not stay so: choose another "
            "format of quantization."
        )
    mark = kept.mark if kept else calibrated_folder.mark(module, masks)
    storage = {**formats, **({} if pruner is None else _pruning(pruner)), "calibrated": mark}
    for folder in keep:
        if place is None or folder.resolve() != place.resolve():
            calibrated_folder.write(folder, module, base.fingerprint, storage, masks)
    return replace(base, storage=storage, masks=masks)


def _pruned(base: LoadedModel, pruner: Pruner | None, rows: Rows) -> dict[str, Tensor]:
    if pruner is None:
        return {}
    masks = prune(base.module, pruner, rows() if pruner.shown else [])
    logging.getLogger("peftkit").info("%s pruned %d maps", pruner.name, len(masks))
    return masks


def _pruning(pruner: Pruner) -> dict[str, Any]:
    return {"pruning": {pruner.name: pruner.options()}}


def _check_dense(base: LoadedModel) -> None:
    packed = Layout(base.module).packed
    if packed:
        raise PeftkitError(
            f"pruning: the weight of {packed[0]} is packed already and cannot be pruned: name the original model, and "
            "its format in quantization."
        )


def _check_pruning(kept: calibrated_folder.KeptBase, pruner: Pruner | None) -> None:
    asked = None if pruner is None else _pruning(pruner)["pruning"]
    if kept.pruning != asked:
        raise PeftkitError(
            f"{kept.folder} holds weights pruned as {kept.pruning or 'none'}, and the recipe asks for "
            f"{asked or 'none'}: name a run of the same pruning, or leave calibration.weights out."
        )


def examples(recipe: Recipe, base: LoadedModel) -> list[Tensor]:
    """Return the ids [1, T] of the examples that `calibration` draws, in the order of the training split."""
    section, tokenizer = recipe.calibration, base.tokenizer
    data = load_data(recipe.dataset, "train")
    if recipe.dataset.streaming or not isinstance(data.examples, Examples):
        drawn = list(data.examples[: section.samples])
    else:
        drawn = list(data.examples.picked(chosen(len(data.examples), 1.0, section.samples, section.seed)))
    name, options = entry(recipe.objective)
    objective = OBJECTIVES[name].from_options(options).settle(drawn)
    template = choose(recipe.dataset.template, tokenizer, recipe.dataset.special)
    length = recipe.train.max_length
    positions: Any = getattr(base.model.config, "max_position_embeddings", None)
    length = min(length, positions) if positions is not None and positions > 0 else length
    rows = objective.encode(drawn, template, tokenizer, length).rows
    if not len(rows):
        raise PeftkitError(
            f"calibration: none of the {len(drawn)} examples drawn of {data.name} keeps a token to train on within "
            f"train.max_length {recipe.train.max_length}: raise it, or draw more with calibration.samples."
        )
    found = [torch.tensor([row.ids]) for row in rows]
    tokens = sum(row.numel() for row in found)
    logging.getLogger("peftkit").info("the base is shown %d examples, %d tokens", len(found), tokens)
    return found
