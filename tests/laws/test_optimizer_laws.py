"""Every optimizer: it goes downhill, stands still at a rate of zero, and goes on from its state bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftkit.errors import PeftkitError
from peftkit.optim import OPTIMIZERS
from peftkit.optim.build import Optimizers

NAMES = OPTIMIZERS.names()
SIZES = [(12, 8), (8, 12), (64, 65)]


def made(name: str, rate: float = 1e-2) -> tuple[list[nn.Parameter], Optimizers]:
    """Return matrices and the optimizer over them."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(size, generator=generator)) for size in SIZES]
    keys = [str(index) for index in range(len(SIZES))]
    group = {"params": parameters, "keys": keys, "lr": rate, "weight_decay": 0.0, "optimizer": name}
    return parameters, Optimizers([group])


def slope(parameters: list[nn.Parameter]) -> float:
    """Set the gradients of the squared distance to 1, which is returned."""
    value = torch.stack([(parameter - 1).square().sum() for parameter in parameters]).sum()
    value.backward()
    return value.item()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_goes_downhill(name):
    parameters, optimizer = made(name)
    values = []
    for _ in range(3):
        values.append(slope(parameters))
        optimizer.step()
        optimizer.zero_grad()
    assert values[2] < values[1] < values[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_of_zero_changes_nothing(name):
    parameters, optimizer = made(name, 0.0)
    before = [parameter.detach().clone() for parameter in parameters]
    slope(parameters)
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(parameters, before, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_another_shape_or_name_is_refused(name):
    parameters, optimizer = made(name)
    slope(parameters)
    optimizer.step()
    state = optimizer.state()
    (part,) = optimizer.parts
    groups = [group for group in part.param_groups for _ in group["params"]]
    told = {
        f"{key}/{state}": torch.Size(shape)
        for key, group, parameter in zip("012", groups, parameters, strict=True)
        for state, shape in OPTIMIZERS[name].state_shapes(group, parameter).items()
    }
    assert {path: torch.as_tensor(value).shape for path, value in state.items()} == told
    for path, value in state.items():
        for other in (torch.as_tensor(value)[None], torch.zeros((*told[path], 0)), -torch.ones(told[path])[..., None]):
            with pytest.raises(PeftkitError, match=rf"state {path} has the shape .*; allowed: "):
                made(name)[1].load_state({**state, path: other})
        rest = {key: held for key, held in state.items() if key != path}
        # A tensor that has had no gradient yet has no state at all.
        if any(key.startswith(f"{path[0]}/") for key in rest):
            with pytest.raises(PeftkitError, match=rf"state of {path[0]} is .*; allowed: .*{path[2:]}"):
                made(name)[1].load_state(rest)
    made(name)[1].load_state(state)


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_from_its_state_bit_for_bit(name):
    (parameters, optimizer), (others, resumed) = made(name), made(name)
    for step in range(5):
        if step == 2:
            with torch.no_grad():
                for mine, other in zip(parameters, others, strict=True):
                    other.copy_(mine)
            resumed.load_state({key: v.clone() if torch.is_tensor(v) else v for key, v in optimizer.state().items()})
        for held, taken in ((parameters, optimizer), (others, resumed))[: 1 if step < 2 else 2]:
            slope(held)
            taken.step()
            taken.zero_grad()
    assert all(torch.equal(*pair) for pair in zip(parameters, others, strict=True))
