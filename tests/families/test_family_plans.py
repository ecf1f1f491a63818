"""A plan of any family is made without an exception, on the code paths of training, and refuses nothing that trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from draw import marked
from model_folders import section
from torch._subclasses.fake_tensor import FakeTensor

import zoo
from peftkit import recipe as recipes
from peftkit.estimation import estimate as estimating
from peftkit.models.load import load
from peftkit.plan import Plan, plan

METHOD = "prompt-tuning"
"""One that every model takes, and whose gradients pass all layers."""
FAMILIES = [name for name in zoo.families() if name not in zoo.UNMADE]
CASES = [(family, precision) for family in FAMILIES for precision in ("fp32", "bf16")]
# transformers' own code of it does not compute in bfloat16, in a run as in a plan.
CASES.remove(("xlstm", "bf16"))
HELD = [("jetmoe", "fp32"), ("lfm2_moe", "fp32"), ("llama4_text", "fp32"), ("qwen3_moe", "fp32"), ("xglm", "bf16")]
"""Experts that are split by numbers read from tensors, in layers with a state, in a model whose body is the whole,
grouped ones, and a table of positions in a buffer."""


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Plan a run of a method on a model in a folder."""
    monkeypatch.setattr(estimating, "process_memory", lambda *given: 0)
    monkeypatch.setattr(estimating, "drawing_memory", lambda: 0)
    rows = [{"prompt": f"number {index}", "completion": "x" * (index + 1)} for index in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(folder: Path, method: Any, precision: str, **train: Any) -> Plan:
        given = {"batch_examples": 4, "max_steps": 3, "device": "cpu", "precision": precision, **train}
        dataset = {"name": "jsonl", "path": str(tmp_path / "train.jsonl")}
        return plan(recipes.load({"model": str(folder), "method": method, "dataset": dataset, "train": given}))

    return made


@pytest.mark.parametrize(("family", "precision"), marked(CASES, HELD))
def test_every_family_is_planned(family: str, precision: str, planned: Callable[..., Plan], tmp_path: Path):
    folder = zoo.write(tmp_path / "base", family)
    memory = planned(folder, METHOD, precision).memory
    assert memory.unknown is None
    assert all(size > 0 for name, size in memory.parts.items() if name != "process")
    assert memory.at_peak["activations"] <= memory.parts["activations"] <= memory.peak
    own = load(section(folder), dtype=torch.bfloat16 if precision == "bf16" else torch.float32).module
    frozen = sum(tensor.nbytes for tensor in {id(t): t for t in (*own.parameters(), *own.buffers())}.values())
    assert memory.parts["weights"] == frozen + memory.parts["gradients"]
    assert memory.parts["optimizer"] >= 2 * memory.parts["gradients"]


def test_an_estimate_that_cannot_be_made_is_told_and_stops_nothing(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """What the model's code does with values that are not there is unknown: the rest of the plan stands."""
    folder = zoo.write(tmp_path / "base", "llama")
    body = type(zoo.build("llama").model)
    forward = body.forward

    def reading(self: Any, **given: Any) -> Any:
        if isinstance(self.embed_tokens.weight, FakeTensor):
            raise RuntimeError("no numbers are here")
        return forward(self, **given)

    monkeypatch.setattr(body, "forward", reading)
    found = planned(folder, "lora", "fp32")
    assert found.memory.unknown == "LlamaForCausalLM does not run without storage: no numbers are here"
    assert found.memory.as_dict()["parts"]["activations"] == {"bytes": None, "at_peak": None}
    assert found.memory.parts["weights"] > 0
    assert any("activations could not be estimated" in notice for notice in found.notices)
    assert planned(folder, "lora", "fp32", memory="1GB").memory.memory_plan == "as the recipe says"
