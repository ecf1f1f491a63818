"""Every strategy: it changes what is trained alone, lowers the loss, resumes bit for bit, refuses a bad step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import loop, objective_named, rows

from peftkit.objectives import DEFAULT
from peftkit.strategies import STRATEGIES, Diverged
from peftkit.training.loop import Loop

NAMES = STRATEGIES.names()
RATES = (1e-1, 1e-2, 1e-3, 1e-4)


def started(name: str, rate: float = 1e-3, steps: int = 6) -> Loop:
    return loop(objective_named(DEFAULT), rows(), strategy=name, learning_rate=rate, max_steps=steps, accumulation=2)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_alone_moves(name):
    run = started(name)
    model = run.adaptation.model
    mine = {id(parameter) for parameter in run.parameters}
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    for _ in range(3):
        run.run_step()
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) == (id(parameter) not in mine), key
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in model.named_buffers())


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls_at_some_rate(name):
    def falls(rate: float) -> bool:
        run = started(name, rate, 20)
        before = run.evaluate(run.batches).loss
        for _ in range(20):
            run.run_step()
        return run.evaluate(run.batches).loss < before - 1e-3

    assert any(falls(rate) for rate in RATES)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_goes_on_bit_for_bit(name):
    whole, resumed = started(name), started(name)
    for _ in range(3):
        whole.run_step()
    parts, facts = whole.state()
    saved: dict[str, Any] = {part: {key: t.clone() for key, t in tensors.items()} for part, tensors in parts.items()}
    resumed.load_state(saved, facts)
    for _ in range(3):
        assert whole.run_step()["loss"] == resumed.run_step()["loss"]
    mine = whole.adaptation.state()
    assert all(torch.equal(tensor, mine[key]) for key, tensor in resumed.adaptation.state().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_is_not_finite_changes_nothing(name):
    run = started(name)
    with torch.no_grad():
        run.parameters[0].fill_(float("nan"))
    before = [parameter.detach().clone() for parameter in run.parameters]
    with pytest.raises(Diverged, match="step 1 of 6"):
        run.run_step()
    for parameter, value in zip(run.parameters, before, strict=True):
        assert torch.equal(parameter.nan_to_num(), value.nan_to_num())


@pytest.mark.parametrize("name", NAMES)
def test_its_options_build_it_again(name):
    assert STRATEGIES[name].from_options(STRATEGIES[name]().options()) == STRATEGIES[name]()
    assert STRATEGIES[name].summary.endswith(".")
