"""GaLore's steps by hand: the subspace, Adam inside it, its refresh, what is kept, and what a resumed run needs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from peftkit.errors import PeftkitError
from peftkit.optim import OPTIMIZERS
from peftkit.optim.build import Optimizers

SHAPES = [(6, 4), (4, 6), (5, 5)]
BETAS, EPS = (0.8, 0.9), 1e-8


def drawn(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(weights, **options):
    group = {"params": weights, "keys": [f"w{i}" for i in range(len(weights))], "lr": 0.1, "weight_decay": 0.0}
    return Optimizers([{**group, "optimizer": "galore", **options}], betas=BETAS, eps=EPS)


def matrix(shape, seed=0, dtype=torch.float32):
    return torch.nn.Parameter(drawn(shape, seed, dtype))


def take_step(optimizer, weights, seed):
    for index, weight in enumerate(weights):
        weight.grad = drawn(weight.shape, 100 * seed + index + 1, weight.dtype)
    optimizer.step()


def project(gradient, basis):
    right = gradient.shape[0] >= gradient.shape[1]
    return gradient @ basis.T if right else basis.T @ gradient


def project_back(low, basis, shape):
    return low @ basis if shape[0] >= shape[1] else basis @ low


@pytest.mark.parametrize("shape", SHAPES)
def test_the_basis_is_orthonormal_and_keeps_the_largest_singular_values(shape):
    weight = matrix(shape)
    optimizer = make([weight], rank=2)
    take_step(optimizer, [weight], 1)
    basis = optimizer.state()["w0/projection"]
    tall = shape[0] >= shape[1]
    assert basis.shape == ((2, shape[1]) if tall else (shape[0], 2))
    rows = basis if tall else basis.T
    assert (rows @ rows.T - torch.eye(2)).abs().max() <= 1e-6
    lost = weight.grad - project_back(project(weight.grad, basis), basis, shape)
    assert lost.norm() == pytest.approx(torch.linalg.svdvals(weight.grad)[2:].norm().item(), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_at_full_rank_it_is_adamw_in_the_rotated_basis(shape):
    weight = matrix(shape, dtype=torch.float64)
    optimizer = make([weight], rank=min(shape), scale=1.0, weight_decay=0.3)
    start = weight.detach().clone()
    take_step(optimizer, [weight], 1)
    basis = optimizer.state()["w0/projection"]
    rotated = torch.nn.Parameter(project(start, basis))
    plain = torch.optim.AdamW([rotated], lr=0.1, betas=BETAS, eps=EPS, weight_decay=0.3)
    for seed in (1, 2, 3, 4):
        if seed > 1:
            take_step(optimizer, [weight], seed)
        rotated.grad = project(weight.grad, basis)
        plain.step()
        assert (project_back(rotated.detach(), basis, shape) - weight).abs().max() <= 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_the_basis_is_taken_again_every_interval_and_the_moments_go_on(shape):
    weight = matrix(shape)
    optimizer = make([weight], rank=2, interval=3, scale=0.5)
    mean, square, basis = torch.zeros(()), torch.zeros(()), None
    for step in range(1, 8):
        before = weight.detach().clone()
        take_step(optimizer, [weight], step)
        state = {key.split("/")[1]: value.clone() for key, value in optimizer.state().items()}
        assert basis is None or torch.equal(basis, state["projection"]) == (step not in (4, 7))
        basis = state["projection"]
        low = project(weight.grad, basis)
        mean, square = BETAS[0] * mean + (1 - BETAS[0]) * low, BETAS[1] * square + (1 - BETAS[1]) * low**2
        assert torch.allclose(state["exp_avg"], mean, atol=1e-6)
        assert torch.allclose(state["exp_avg_sq"], square, atol=1e-6)
        direction = mean / (1 - BETAS[0] ** step) / ((square / (1 - BETAS[1] ** step)).sqrt() + EPS)
        expected = before - 0.1 * 0.5 * project_back(direction, basis, shape)
        assert torch.allclose(weight, expected, atol=1e-6)


def test_the_states_are_thin():
    weight = matrix((48, 32))
    optimizer = make([weight], rank=4)
    take_step(optimizer, [weight], 1)
    kept = {key: value for key, value in optimizer.state().items() if not key.endswith("/step")}
    # The storage counts: a view of the whole decomposition would keep all of it.
    size = sum(value.untyped_storage().nbytes() for value in kept.values())
    assert size == 4 * 4 * (2 * 48 + 32)
    group = {"params": [weight], "rank": 4}
    cpu = torch.device("cpu")
    assert size == OPTIMIZERS["galore"].state_bytes(group, cpu) < OPTIMIZERS["adamw"].state_bytes(group, cpu) / 5


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_saved_state_goes_on_bit_for_bit_through_a_refresh(stop):
    whole = [matrix(shape, seed) for seed, shape in enumerate(SHAPES)]
    optimizer = make(whole, rank=2, interval=2, weight_decay=0.1)
    for step in range(6):
        if step == stop:
            content = save({key: value.contiguous() for key, value in optimizer.state().items()})
            resumed = [torch.nn.Parameter(weight.detach().clone()) for weight in whole]
        take_step(optimizer, whole, step)
    other = make(resumed, rank=2, interval=2, weight_decay=0.1)
    other.load_state(load(content))
    for step in range(stop, 6):
        take_step(other, resumed, step)
    for one, two in zip(whole, resumed, strict=True):
        assert torch.equal(one, two)
    states = optimizer.state(), other.state()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_weight_without_a_gradient_is_left_alone():
    weights = [matrix((4, 3)), matrix((4, 3), 1)]
    optimizer = make(weights, rank=2, weight_decay=0.5)
    before = weights[1].detach().clone()
    weights[0].grad = drawn((4, 3), 5)
    optimizer.step()
    assert torch.equal(weights[1], before)
    assert {key.split("/")[0] for key in optimizer.state()} == {"w0"}


def test_a_gradient_of_zeros_moves_nothing():
    weight = matrix((4, 3))
    before = weight.detach().clone()
    optimizer = make([weight], rank=2)
    weight.grad = torch.zeros(4, 3)
    optimizer.step()
    assert torch.equal(weight, before)


def test_a_vector_is_refused():
    with pytest.raises(PeftkitError, match=r"matrices alone.*\[7\]"):
        make([torch.nn.Parameter(torch.zeros(7))], rank=1)
