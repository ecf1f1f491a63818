"""Adapters on modules that a model never calls are refused by name, in runs and plans; experts left out are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_proof import rows
from torch import Tensor, nn

import zoo
from peftkit.adaptation import attach
from peftkit.data.batches import collate
from peftkit.engine.engine import Arrangement, choose
from peftkit.errors import PeftkitError
from peftkit.estimation.step import foretell
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.ports.seat import Seat
from peftkit.recipe import TrainSection

CPU = torch.device("cpu")


def adapted(model: Any, targets: str | list[str], rank: int = 2) -> Any:
    attach(model, [METHODS["lora"].from_options({"targets": targets, "rank": rank})], seed=1)
    return model


def told(model: Any) -> list[list[str]]:
    """Return the notices of a run and of a plan; either may refuse the model."""
    notices = [choose(model, rows(), 0, CPU, Arrangement())[1]]
    return [*notices, foretell(model.to("meta"), collate(rows(), 0), TrainSection(), CPU)]


def refusals(model: Any) -> list[str]:
    """Return what a run and a plan are refused for."""
    found = []
    with pytest.raises(PeftkitError) as error:
        choose(model, rows(), 0, CPU, Arrangement())
    found.append(str(error.value))
    with pytest.raises(PeftkitError) as error:
        foretell(model.to("meta"), collate(rows(), 0), TrainSection(), CPU)
    return [*found, str(error.value)]


class Reads(nn.Module):
    """Computes a gate from its weight, past the layer."""

    def __init__(self, mlp: Any):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(F.linear(x, self.gate_proj.weight)) * self.up_proj(x))


def reading(at: int) -> Any:
    model: Any = tiny("llama")
    model.model.layers[at].mlp = Reads(model.model.layers[at].mlp)
    return model


@pytest.mark.parametrize("at", [0, 1])
def test_a_module_whose_weight_is_read_past_it_is_refused_by_name(at: int):
    for text in refusals(adapted(reading(at), ["gate_proj", "q_proj"])):
        assert text.startswith(f"adapters sit on model.layers.{at}.mlp.gate_proj, and this model reads their weights")
        assert "exclude: [gate_proj]" in text
    assert told(adapted(reading(at), ["q_proj"])) == [[], []]


def test_a_packed_module_that_is_not_called_is_refused_too():
    """Nobody can tell whether its weight is read: it is no leaf of the graph."""
    model: Any = tiny("llama")
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)))
    weight = mlp.up_proj.weight
    del mlp.up_proj.weight
    mlp.up_proj.register_buffer("weight", weight.detach())
    with pytest.raises(PeftkitError, match=r"adapters sit on model\.layers\.0\.mlp\.up_proj, and"):
        choose(adapted(model, ["up_proj"]), rows(), 0, CPU, Arrangement())


@pytest.mark.parametrize("family", ["falcon_mamba", "mamba"])
def test_the_fast_paths_of_state_spaces_are_found(family: str):
    for text in refusals(adapted(zoo.build(family), ["dt_proj", "in_proj"])):
        assert "exclude: [dt_proj]" in text
    assert not any("never calls" in line for lines in told(adapted(zoo.build(family), ["in_proj"])) for line in lines)


def test_a_module_that_nothing_reads_is_refused_where_none_of_its_kind_is_called():
    model: Any = tiny("llama")
    model.model.vision = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    for text in refusals(adapted(model, ["q_proj", "vision.*"])):
        assert text.startswith("adapters sit on model.vision.0, model.vision.1, and this model does not call them")


def test_a_layer_that_does_without_a_module_of_others_is_told_of():
    """As those that share keys and values with the layers below them."""
    model: Any = tiny("llama")
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)))
    for lines in told(adapted(model, ["up_proj", "q_proj"])):
        assert lines[0] == "the model never calls model.layers.1.mlp.up_proj: adapters there stay as they start."


class Routed(nn.Module):
    """Runs the first of its experts alone."""

    def __init__(self, mlp: nn.Module, others: nn.Module):
        super().__init__()
        self.experts = nn.ModuleList([mlp, others])

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[0](x)


def test_experts_that_no_token_is_sent_to_are_no_fault():
    model: Any = tiny("llama")
    model.model.layers[0].mlp = Routed(model.model.layers[0].mlp, tiny("llama", seed=1).model.layers[0].mlp)
    model = adapted(model, ["gate_proj"])
    silent = model.model.layers[0].mlp.experts[1].gate_proj
    assert isinstance(silent, Seat)
    assert told(model) == [[], []]


def test_a_plan_tells_what_it_leaves_to_the_run():
    model = adapted(tiny("llama"), "linear").to("meta")

    def fail(module: nn.Module, args: Any) -> None:
        raise RuntimeError("needs its numbers")

    handle = model.model.layers[0].register_forward_pre_hook(fail)
    notices = foretell(model, collate(rows(), 0), TrainSection(), CPU)
    handle.remove()
    assert notices == [
        "whether the model calls each adapted module shows at the start of the run alone: LlamaForCausalLM does not "
        "run without storage: needs its numbers."
    ]
    assert foretell(model, collate(rows(), 0), TrainSection(), CPU) == []
