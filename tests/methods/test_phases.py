"""Phases of a run: where the optimizer and the schedule begin anew, and the methods that have several."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.hooks import Phase
from peftkit.method import METHODS
from peftkit.methods.far import FAR
from peftkit.methods.lt_sft import LTSFT
from peftkit.methods.periodic_lora import PeriodicLoRA
from peftkit.models.tiny import tiny
from peftkit.optim.build import Optimizers

IDS = torch.arange(3, 27).view(2, 12)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def randomise(adaptation, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.normal_(std=0.05, generator=generator)


def test_phases_follow_each_other_and_cover_the_run():
    method = PeriodicLoRA(periods=3, forget=0.9)
    found = [method.phase(step, 10) for step in range(10)]
    assert found == [Phase(0, 3, 0.9)] * 3 + [Phase(3, 6, 0.9)] * 3 + [Phase(6, 10, 0.9)] * 4
    assert [LTSFT(first=0.5).phase(step, 4) for step in range(4)] == [Phase(0, 2)] * 2 + [Phase(2, 4)] * 2
    assert METHODS["lora"]().phase(3, 10) == Phase(0, 10)


def test_moments_are_dropped_or_their_smallest_share_is_zero():
    one, other = nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(10))
    groups = [{"params": [p], "keys": [f"0/{i}"], "lr": 0.1, "weight_decay": 0.0} for i, p in enumerate((one, other))]
    optimizers = Optimizers(groups)
    for parameter in (one, other):
        parameter.grad = torch.arange(1.0, 11.0)
    optimizers.step()
    first, second = optimizers.param_groups
    optimizers.forget(first, 1.0)
    optimizers.forget(second, 0.9)
    state = optimizers.state()
    assert not any(key.startswith("0/0/") for key in state)
    assert state["0/1/exp_avg"].count_nonzero() == 1
    assert state["0/1/exp_avg"][9] == pytest.approx(1.0)


def test_states_of_eight_bits_cannot_be_pruned():
    parameter = nn.Parameter(torch.zeros(64, 64))
    group = {"params": [parameter], "keys": ["0/w"], "lr": 0.1, "weight_decay": 0.0}
    optimizers = Optimizers([group], default="adamw-8bit")
    parameter.grad = torch.ones(64, 64)
    optimizers.step()
    with pytest.raises(PeftkitError, match=r"train\.optimizer"):
        optimizers.forget(optimizers.param_groups[0], 0.5)


def test_a_period_ends_without_a_change_of_what_is_computed_and_the_rank_grows():
    method = PeriodicLoRA(rank=3, periods=4, targets="linear")
    adaptation = attach(tiny("llama"), [method])
    adapters, ranks = adaptation.parts[0].adapters, []
    for step in range(8):
        randomise(adaptation, step)
        before = logits(adaptation.model)
        method.after_step(adapters, step, 8)
        torch.testing.assert_close(logits(adaptation.model), before, atol=1e-5, rtol=1e-5)
        summed = next(iter(adapters.values())).D
        ranks.append(0 if summed is None else len(summed))
    assert ranks == [0, 3, 3, 6, 6, 9, 9, 9]
    change = next(iter(adapters.values())).delta(torch.zeros(32, 32))
    assert torch.linalg.matrix_rank(change) == 12
    state = {key: tensor.clone() for key, tensor in adaptation.state().items()}
    other = attach(tiny("llama"), [method], seed=5)
    other.load_state(state)
    assert torch.equal(logits(other.model), logits(adaptation.model))


def test_a_sum_of_full_rank_is_one_matrix():
    adapter = PeriodicLoRA(rank=4).build(
        METHODS["lora"](targets=("v",)).sites(attach(tiny("llama"), [PeriodicLoRA()]).layout)[0]
    )
    for step in range(6):
        nn.init.normal_(adapter.B)
        before = adapter.delta(torch.zeros(1))
        adapter.unload(torch.Generator().manual_seed(step), PeriodicLoRA(rank=4))
        torch.testing.assert_close(adapter.delta(torch.zeros(1)), before)
    assert adapter.D.shape == (16, 32)
    assert adapter.U.shape == (16, 16)


@pytest.mark.parametrize("method", [LTSFT(density=0.05), FAR(density=0.1)], ids=["lt-sft", "far"])
def test_the_second_phase_begins_from_the_base_with_the_entries_that_changed_most(method):
    model = tiny("llama")
    base = logits(model)
    adaptation = attach(model, [method])
    randomise(adaptation)
    adapters = adaptation.parts[0].adapters
    adapter = adapters["model.layers.0.mlp.up_proj"]
    with torch.no_grad():
        adapter.w[5] += 3.0
    method.after_step(adapters, method.phase(0, 10).end - 1, 10)
    assert torch.equal(logits(model), base)
    randomise(adaptation)
    change = adapter.change()
    assert bool((change[5] != 0).all())
    assert int((change != 0).sum()) < 0.2 * change.numel()
    trained = logits(model)
    adaptation.finish()
    torch.testing.assert_close(logits(model), trained, atol=1e-5, rtol=0)


def test_far_changes_the_same_neurons_of_gate_up_and_down():
    adaptation = attach(tiny("llama"), [FAR(density=0.1)])
    randomise(adaptation)
    adaptation.finish()
    adapters = adaptation.parts[0].adapters
    places = [adapters[f"model.layers.0.mlp.{name}_proj"].neurons.tolist() for name in ("gate", "up", "down")]
    assert places[0] == places[1] == places[2]
    # 64 neurons, a tenth of them.
    assert len(places[0]) == 6
    assert adapters["model.layers.0.mlp.down_proj"].block.shape == (6, 32)
