"""Train the scales of a one-bit difference to give the fine-tuned logits (Liu et al. 2024, arXiv:2402.10193)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.data.batches import Batch, Batches, Epoch
from peftkit.data.encode import encode
from peftkit.data.template import choose
from peftkit.errors import PeftkitError
from peftkit.export.trained import Trained
from peftkit.models.samples import logits
from peftkit.tasks.source import load as load_data

STEPS, EXAMPLES, LENGTH, RATE = 200, 4, 128, 1e-4
"""Steps, examples a step, tokens an example and Adam's learning rate: those of the official code."""
MEASURED = 8
"""Batches on which the loss is measured before and after."""


@dataclass
class Signs:
    """The change of one weight: `values` [out, in] of +1 and -1 in fp32, and the scale that they share."""

    values: Tensor
    scale: nn.Parameter


@dataclass
class Distilled:
    """What training the scales brought: the mean square of the logits' difference, and logits on sample prompts."""

    logits: Tensor
    """Those of the base with the difference, in the end."""
    difference: float
    """The largest one before, on the sample prompts."""
    losses: tuple[float, float] | None
    """Before and after; None where there were no data to train on."""

    @property
    def steps(self) -> int:
        """The number of steps."""
        return 0 if self.losses is None else STEPS

    def report(self) -> dict[str, Any]:
        """Return what the export tells of it."""
        losses = zip(("loss_before", "loss_after"), self.losses or (), strict=False)
        return {"max_difference_before": self.difference, "steps": self.steps, **dict(losses)}


def distill(trained: Trained, base: nn.Module, signs: Mapping[str, Signs], wanted: Tensor) -> Distilled:
    """Train the scales of `signs` in place, by Adam with a cosine schedule, on the run's training data.

    The loss is the mean square of the difference between the logits of `base` with the signs and of the fine-tuned
    model, whose logits on the sample prompts are `wanted`. The scales stay as they were where the loss did not fall.
    Where the data cannot be read, a warning says that they were not trained.
    """
    tuned, words = trained.model, trained.tokenizer
    with _added(base, signs):
        before = float((logits(base, words) - wanted).abs().max())
        losses = None
        try:
            batches = _batches(trained)
        except PeftkitError as error:
            logging.getLogger("peftkit").warning("the scales are left at the mean change: %s", error)
        else:
            if signs:
                losses = _train(tuned, base, signs, batches, words.pad_token_id)
        return Distilled(logits(base, words), before, losses)


def _train(
    tuned: nn.Module, base: nn.Module, signs: Mapping[str, Signs], batches: Batches, pad_id: int
) -> tuple[float, float]:
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    measured = list(islice(_endless(batches, pad_id), MEASURED))
    scales = [one.scale for one in signs.values()]
    start = [scale.detach().clone() for scale in scales]
    optimizer = torch.optim.Adam(scales, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    before = _measure(tuned, base, measured)
    for batch in islice(_endless(batches, pad_id), STEPS):
        _loss(tuned, base, batch).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    after = _measure(tuned, base, measured)
    if after < before:
        return before, after
    with torch.no_grad():
        for scale, value in zip(scales, start, strict=True):
            scale.copy_(value)
    return before, before


def _loss(tuned: nn.Module, base: nn.Module, batch: Batch) -> Tensor:
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    with torch.no_grad():
        wanted = tuned(**inputs).logits
    there = batch.attention_mask.bool()
    return F.mse_loss(base(**inputs).logits[there], wanted[there])


@torch.no_grad()
def _measure(tuned: nn.Module, base: nn.Module, batches: list[Batch]) -> float:
    return sum(float(_loss(tuned, base, batch)) for batch in batches) / len(batches)


def _endless(batches: Batches, pad_id: int) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from Epoch(batches, epoch, pad_id)
        epoch += 1


def _batches(trained: Trained) -> Batches:
    """Return batches of examples spread evenly over the run's training data, as many as the steps take."""
    recipe, words = trained.recipe, trained.tokenizer
    data = load_data(recipe.dataset, "train")
    every = max(1, len(data.examples) // (STEPS * EXAMPLES))
    chosen = data.examples[: every * STEPS * EXAMPLES : every]
    template = choose(recipe.dataset.template, words, recipe.dataset.special)
    rows = encode(chosen, template, words, min(LENGTH, recipe.train.max_length)).rows
    return Batches(rows, batch_examples=EXAMPLES, seed=recipe.train.seed)


@contextmanager
def _added(base: nn.Module, signs: Mapping[str, Signs]) -> Iterator[None]:
    """Have the linear maps of `base` compute with the difference added, so that its scales take gradients."""
    hooks = [base.get_submodule(path).register_forward_hook(partial(_add, one)) for path, one in signs.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(one: Signs, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + one.scale * F.linear(inputs[0], one.values)
