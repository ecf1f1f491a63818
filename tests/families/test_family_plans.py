"""A plan of any family is made without an exception, on the code paths of training, and refuses nothing that trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zoo
from draw import marked
from model_folders import byte_tokenizer
from torch._subclasses.fake_tensor import FakeTensor

from peftkit import recipe as recipes
from peftkit.adaptation import check_methods
from peftkit.errors import PeftkitError
from peftkit.estimation import estimate as estimating
from peftkit.method import METHODS
from peftkit.models.quiet import quiet
from peftkit.plan import Plan, plan

GENERAL = "prompt-tuning"
"""A method that every model takes, and whose gradients pass all layers."""


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Plan a run of a method on a model that is there as a configuration alone."""
    monkeypatch.setattr(estimating, "process_memory", lambda *given: 0)
    monkeypatch.setattr(estimating, "drawing_memory", lambda: 0)
    data = tmp_path / "train.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"number {i}", "completion": "x" * (i + 1)}) + "\n" for i in range(8))
    )

    def made(model: Any, method: Any, precision: str, **train: Any) -> Plan:
        with quiet():
            model.config.save_pretrained(tmp_path / "base")
            byte_tokenizer().save_pretrained(tmp_path / "base")
        given = {"batch_examples": 4, "max_steps": 3, "device": "cpu", "precision": precision, **train}
        dataset = {"name": "jsonl", "path": str(data)}
        return plan(
            recipes.load({"model": str(tmp_path / "base"), "method": method, "dataset": dataset, "train": given})
        )

    return made


def built(family: str) -> Any:
    """Build a model of the zoo; one that cannot be made is skipped."""
    try:
        return zoo.build(family)
    except Exception as error:
        pytest.skip(f"{family} cannot be made: {type(error).__name__}")


def lora_or_general(model: Any) -> Any:
    """Return LoRA on all linear maps where the layout of a model has them, else a method that needs none."""
    lora = {"targets": "linear", "rank": 2}
    try:
        check_methods(model, [METHODS["lora"].from_options(lora)])
    except (PeftkitError, AssertionError):
        return GENERAL
    return {"lora": lora}


CASES = [(family, precision) for family in zoo.families() for precision in ("fp32", "bf16")]
HELD = [("jetmoe", "fp32"), ("lfm2_moe", "fp32"), ("llama4_text", "fp32"), ("qwen3_moe", "fp32"), ("xglm", "bf16")]
"""Experts that are split by numbers read from tensors, in layers with a state, in a model whose body is the whole,
grouped ones, and a table of positions in a buffer."""


@pytest.mark.parametrize(("family", "precision"), marked(CASES, HELD))
def test_every_family_is_planned(family: str, precision: str, planned: Callable[..., Plan]):
    model = built(family)
    memory = planned(model, lora_or_general(model) if precision == "fp32" else GENERAL, precision).memory
    assert memory.unknown is None
    assert all(size > 0 for name, size in memory.parts.items() if name != "process")
    frozen = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    numbers = sum(tensor.numel() for tensor in frozen)
    exact = sum(tensor.nbytes for tensor in frozen)
    adapters = memory.parts["gradients"]
    if precision == "fp32":
        assert memory.parts["weights"] == exact + adapters
    else:
        assert 2 * numbers <= memory.parts["weights"] - adapters < 0.75 * exact
    assert memory.parts["optimizer"] >= 2 * adapters
    assert memory.parts["activations"] <= memory.peak


def test_an_estimate_that_cannot_be_made_is_told_and_stops_nothing(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
):
    """What the model's code does with values that are not there is unknown: the rest of the plan stands."""
    model = zoo.build("llama")
    forward = type(model.model).forward

    def reading(self: Any, **given: Any) -> Any:
        if isinstance(self.embed_tokens.weight, FakeTensor):
            raise RuntimeError("no numbers are here")
        return forward(self, **given)

    monkeypatch.setattr(type(model.model), "forward", reading)
    found = planned(model, "lora", "fp32")
    assert found.memory.unknown == "LlamaForCausalLM does not run without storage: no numbers are here"
    assert found.memory.as_dict()["parts"]["activations"] == {"bytes": None, "at_peak": None}
    assert found.memory.parts["weights"] > 0
    assert any("activations could not be estimated" in notice for notice in found.notices)
    assert planned(model, "lora", "fp32", memory="1GB").memory.memory_plan == "as the recipe says"
