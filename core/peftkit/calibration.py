"""What a recipe's formats are calibrated on, and the base that comes of it: once for a run, and found again later."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftkit.data.examples import Examples
from peftkit.data.subset import chosen
from peftkit.data.template import choose
from peftkit.errors import PeftkitError
from peftkit.models import calibrated_folder
from peftkit.models.calibrate import calibrate
from peftkit.models.loaded import LoadedModel
from peftkit.models.quantize import Quantization
from peftkit.objectives import OBJECTIVES
from peftkit.recipe import BASE, Recipe
from peftkit.recipe.entries import entry
from peftkit.tasks.source import load as load_data


def calibrated(base: LoadedModel, recipe: Recipe, keep: Sequence[Path] = ()) -> LoadedModel:
    """Pack what a recipe's formats leave to examples, of a base in which it is dense yet; it changes in place.

    It is as `calibration.weights` has it, or decided on examples now, and its mark stands in the storage that is
    returned. The folders `keep` get what another start needs. Raises PeftkitError for data that cannot be read or give
    no example, weights that cannot be packed, and kept ones that are damaged or another base's.
    """
    quantization = Quantization.of(recipe.quantization)
    chosen = quantization.description()
    if not quantization.calibrated or {key: base.storage.get(key) for key in chosen} == chosen:
        return base
    weights = recipe.calibration.weights
    place = None if weights is None else Path(weights) / BASE
    if place is not None:
        mark = calibrated_folder.read(place, base.module, quantization, base.fingerprint)
    else:
        rows = examples(recipe, base)
        calibrate(base.module, quantization, rows)
        mark, tokens = calibrated_folder.mark(base.module), sum(row.numel() for row in rows)
        log = logging.getLogger("peftkit")
        log.info("%s calibrated on %d examples, %d tokens", quantization.in_words(), len(rows), tokens)
    storage = {**chosen, "calibrated": mark}
    for folder in keep:
        if place is None or folder.resolve() != place.resolve():
            calibrated_folder.write(folder, base.module, base.fingerprint, storage)
    return replace(base, storage=storage)


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
    return [torch.tensor([row.ids]) for row in rows]
