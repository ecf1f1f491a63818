"""With `train.precision: bf16` frozen weights are held in it, nothing is cast, and adapters stay in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from facts import facts
from small_runs import make_recipe

from peftkit import recipe
from peftkit.layout import own_parameters
from peftkit.method import METHODS
from peftkit.plan import plan
from peftkit.training import train
from peftkit.training.preparation import prepare

PLAIN = [name for name, cls in METHODS.items() if cls.needs is None]


def dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for _, parameter in own_parameters(model)}


@pytest.mark.parametrize("method", PLAIN)
def test_every_method_trains_on_weights_in_bf16(source: Path, method: str):
    """A method that trains the model's own weights has them in fp32, all of them, and casts as it computes."""
    losses = {}
    for precision in ("fp32", "bf16"):
        prepared = prepare(recipe.load(make_recipe(source, method, precision=precision, max_steps=4)))
        prepared.loaded.model.config.attention_dropout = 0.0
        for layer in prepared.loaded.model.model.layers:
            layer.self_attn.attention_dropout = 0.0
        losses[precision] = [prepared.loop.run_step()["loss"] for _ in range(2)]
    own = any(part.own for part in prepared.adaptation.parts)
    assert dtypes(prepared.loaded.model) == {torch.float32 if own else torch.bfloat16}
    assert prepared.loop.passes.plain.casts == ("bf16" if own else "fp32")
    assert {parameter.dtype for _, parameter in prepared.adaptation.parameters()} == {torch.float32}
    if not facts(method).random_in_training:
        assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.1)
    assert losses["bf16"] != losses["fp32"]


def test_packed_weights_and_a_chosen_dtype_are_left_as_they_are(source: Path):
    packed = {**make_recipe(source, "lora", precision="bf16"), "quantization": {"format": "int8"}}
    prepared = prepare(recipe.load(packed))
    assert dtypes(prepared.loaded.model) == {torch.float32}
    assert prepared.loop.passes.plain.casts == "bf16"
    chosen = make_recipe(source, "lora", precision="bf16")
    chosen["model"]["dtype"] = "float32"
    assert dtypes(prepare(recipe.load(chosen)).loaded.model) == {torch.float32}


def test_a_plan_counts_the_weights_in_bf16(source: Path):
    wide, lean = (plan(recipe.load(make_recipe(source, "lora", precision=p))).memory for p in ("fp32", "bf16"))
    assert 0.4 < lean.parts["weights"] / wide.parts["weights"] < 0.8


@pytest.mark.parametrize("method", ["lora", "prefix-tuning", "prompt-tuning"])
def test_answers_are_scored_on_the_way(tmp_path: Path, method: str):
    given = {"model": "bundled/tiny", "method": method, "dataset": "bundled/e2e"}
    steps = {"max_steps": 2, "batch_examples": 4, "score_every": 2, "score_inputs": 2, "precision": "bf16"}
    keys = {"train": {**steps, "device": "cpu"}, "generation": {"max_new_tokens": 4}}
    summary = train(recipe.load({**given, **keys}), tmp_path / "run")
    assert summary.scores
    assert summary.precision == "bf16"
