"""What is held of a run on any family: the README's recipe trains, comes back, merges, and a plan foretells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_checks import SAME
from losses import plain_loss
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from peftkit import recipe as recipes
from peftkit.assembly import assemble
from peftkit.data.batches import Epoch, collate
from peftkit.data.encode import Encoded
from peftkit.errors import PeftkitError
from peftkit.export import merge
from peftkit.models.doubled import doubled
from peftkit.models.quiet import quiet
from peftkit.plan import plan
from peftkit.recipe import Recipe
from peftkit.training.observer import Silent
from peftkit.training.session import Session
from zoo import IMAGE_TEXT

NF4 = {"format": "nf4", "block_size": 16}
IDS = torch.arange(3, 40)[None]
SHARED = ("zamba", "zamba2")
"""Families with layers that share their weights: what is adapted in one of them cannot be merged."""


def five_lines(folder: Path, quantization: Any = "none", method: Any = "lora", **train: Any) -> Recipe:
    """Return the README's recipe on a model, of a rank and a length that suit tiny ones."""
    return recipes.load(
        {
            "model": str(folder),
            "method": method,
            "rank": 2,
            "quantization": quantization,
            "dataset": {"name": "bundled/e2e", "limit": 8},
            "train": {"max_steps": 3, "batch_examples": 4, "max_length": 96, "learning_rate": 0.01} | train,
        }
    )


DRAWING, DRAWN = "phimoe", 1e-2
"""A family that draws its experts at random in training, and how far its losses may lie apart for that."""


def trains(family: str, folder: Path, run: Path, method: Any = "lora") -> None:
    """Hold that the recipe trains: from the model's own loss, by steps that move the adapter, to a run that opens."""
    session = Session(five_lines(folder, method=method), run, Silent(), False)
    prepared = session.prepared
    first = next(iter(Epoch(prepared.batches, 0, prepared.loaded.tokenizer.pad_token_id)))
    expected = first_loss(opened(family, folder), first)
    summary = session.go()
    assert summary.steps == 3
    told = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    bound = DRAWN if family == DRAWING else SAME
    assert abs(told[0]["loss"] - expected) <= bound * max(1.0, expected), (
        f"{told[0]['loss']} and not {expected} at first"
    )
    assert all(record["grad_norm"] > 0 for record in told)
    again = assemble(five_lines(folder, method=method), run / "adapter")
    same(again.model, prepared.loaded.model.eval(), "the run opens as another model")
    differs(again.model, opened(family, folder), "training changed nothing")


def merges(family: str, folder: Path, run: Path, output: Path) -> None:
    """Hold that the run merges into a checkpoint that plain transformers opens with the same logits."""
    if family in SHARED:
        with pytest.raises(PeftkitError, match="is that of another layer too"):
            merge(run, output)
        return
    merge(run, output)
    trained = assemble(recipes.load(run / "recipe.yaml"), run / "adapter")
    same(opened(family, output), trained.model, "the merged checkpoint is another model", 5 * SAME)


def merges_packed(family: str, folder: Path, run: Path, output: Path) -> None:
    """Hold that a run on a base in nf4 merges into the original weights, and into those that it was trained on."""
    Session(five_lines(folder, NF4, max_steps=1), run, Silent(), False).go()
    if family in SHARED:
        return
    merge(run, output / "original")
    merge(run, output / "dequantized", into="dequantized")
    trained = assemble(recipes.load(run / "recipe.yaml"), run / "adapter")
    same(opened(family, output / "dequantized"), trained.model, "merged, it is another model", 1e-4)


def plans(family: str, folder: Path, run: Path) -> None:
    """Hold that a plan counts what the run has, of weights as they are and of packed ones that are recomputed."""
    summary = json.loads((run / "summary.json").read_text())
    for recipe in (five_lines(folder), five_lines(folder, NF4, gradient_checkpointing=recomputes(family, folder))):
        planned = plan(recipe)
        assert planned.trainable == summary["trainable_parameters"]
        assert planned.total == summary["total_parameters"]
        assert planned.memory.peak > 0


def recomputes(family: str, folder: Path) -> bool:
    """Say whether transformers can recompute activations of the family."""
    return bool(opened(family, folder).supports_gradient_checkpointing)


def draws(model: Any) -> bool:
    """Say whether a model draws at random in training, as some routers of experts do."""
    return not torch.equal(logits(model.train()), logits(model.eval()))


def first_loss(model: Any, batch: Any) -> float:
    """Return the mean loss of a batch by the model alone, row by row without padding."""
    total = 0.0
    with torch.no_grad():
        for ids, labels, mask in zip(batch.input_ids, batch.labels, batch.attention_mask, strict=True):
            length = int(mask.sum())
            row = Encoded(ids[:length].tolist(), labels[:length].tolist())
            total += float(plain_loss(model, collate([row], 0)))
    return total / batch.trained


def opened(family: str, folder: Path) -> Any:
    """Open a checkpoint in plain transformers."""
    loader = AutoModelForImageTextToText if family in IMAGE_TEXT else AutoModelForCausalLM
    with quiet():
        return loader.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> Tensor:
    """Return the logits [T, V] of some tokens."""
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits[0]


def same(one: Any, other: Any, words: str, bound: float = SAME) -> None:
    """Hold that two models give the same logits, relative to their spread; what rounding parts, they do in fp64."""
    if away(one, other) > bound:
        with doubled(one, other):
            apart = away(one, other)
        assert apart <= bound, f"{words}: {apart:.2g} of the spread of its logits away"


def away(one: Any, other: Any) -> float:
    """Return the largest difference of the logits of two models, relative to their spread."""
    found, expected = logits(one), logits(other)
    return float((found - expected).abs().max() / expected.std())


def differs(one: Any, other: Any, words: str) -> None:
    """Hold that two models give other logits."""
    assert away(one, other) > SAME, words
