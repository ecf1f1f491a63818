"""APOLLO's steps by hand: scales of channels, the limit of growth, its projection, and what is kept."""

from __future__ import annotations

import math

import pytest
import torch

from peftkit.optim.build import Optimizers, state_bytes

BETAS, EPS, RATE, DECAY = (0.8, 0.9), 1e-8, 0.1, 0.3
SHAPES = [(6, 9), (9, 6)]


def drawn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(weight, **options):
    group = {"params": [weight], "keys": ["w"], "lr": RATE, "weight_decay": DECAY, **options}
    return Optimizers([group], betas=BETAS, eps=EPS, default="apollo")


def expected(weight, gradients, rank, interval):
    """Take the steps by arXiv:2412.05270, algorithm 1, with the larger side in columns."""
    tall = weight.shape[0] > weight.shape[1]
    mean = square = last = None
    for step, gradient in enumerate(gradients):
        g = gradient.T if tall else gradient
        p = drawn((rank, len(g)), step // interval) / math.sqrt(rank)
        r = p @ g
        mean = BETAS[0] * (0 if mean is None else mean) + (1 - BETAS[0]) * r
        square = BETAS[1] * (0 if square is None else square) + (1 - BETAS[1]) * r**2
        count = step + 1
        adam = mean / (1 - BETAS[0] ** count) / ((square / (1 - BETAS[1] ** count)).sqrt() + EPS)
        update = g * adam.norm(dim=0) / r.norm(dim=0) * math.sqrt(len(g) / rank)
        if last is not None and update.norm() > 1.01 * last:
            update = update / update.norm() * 1.01 * last
        last = update.norm()
        weight = weight * (1 - RATE * DECAY) - RATE * (update.T if tall else update)
    return weight


@pytest.mark.parametrize("shape", SHAPES)
def test_the_steps_follow_the_formulas(shape):
    weight = torch.nn.Parameter(drawn(shape, 50))
    start, optimizer = weight.detach().clone(), build(weight, rank=2, interval=2)
    gradients = [drawn(shape, 60 + step) * size for step, size in enumerate((1.0, 3.0, 0.1, 2.0, 1.0))]
    for step, gradient in enumerate(gradients, 1):
        weight.grad = gradient.clone()
        optimizer.step()
        assert torch.allclose(weight, expected(start, gradients[:step], 2, 2), atol=1e-5)


@pytest.mark.parametrize("rank", [16, 32])
def test_the_first_step_is_as_large_as_that_of_adamw(rank):
    weight = torch.nn.Parameter(torch.zeros(64, 512))
    optimizer = build(weight, rank=rank)
    weight.grad = drawn((64, 512), 3)
    optimizer.step()
    # Each number moves by the rate in AdamW's first step.
    assert weight.norm().item() == pytest.approx(RATE * math.sqrt(weight.numel()), rel=0.1)


def test_a_gradient_of_zeros_moves_nothing_and_a_later_one_does():
    weight = torch.nn.Parameter(drawn((6, 9), 0))
    optimizer = build(weight, rank=2, weight_decay=0.0)
    before = weight.detach().clone()
    for gradient, moves in ((torch.zeros(6, 9), False), (drawn((6, 9), 1), True), (torch.zeros(6, 9), False)):
        weight.grad = gradient
        optimizer.step()
        assert bool(torch.isfinite(weight).all())
        assert torch.equal(weight, before) != moves
        before = weight.detach().clone()


@pytest.mark.parametrize(("shape", "rest"), [((7,), {}), ((3, 40, 50), {}), ((32, 50), {}), ((40, 50), {"off": True})])
def test_all_else_is_stepped_by_adamw_bit_for_bit(shape, rest):
    mine, theirs = torch.nn.Parameter(drawn(shape, 0)), torch.nn.Parameter(drawn(shape, 0))
    optimizer = build(mine, multiplies=not rest)
    plain = torch.optim.AdamW([theirs], lr=RATE, weight_decay=DECAY, betas=BETAS, eps=EPS, foreach=False)
    for step in range(3):
        mine.grad, theirs.grad = drawn(shape, step), drawn(shape, step)
        optimizer.step()
        plain.step()
    assert torch.equal(mine, theirs)


def test_its_states_are_thin():
    weight = torch.nn.Parameter(drawn((512, 1024), 0))
    optimizer = build(weight)
    weight.grad = drawn((512, 1024), 1)
    optimizer.step()
    groups = [{"params": [weight], "keys": ["w"]}]
    kept = sum(value.untyped_storage().nbytes() for key, value in optimizer.state().items() if "step" not in key)
    assert kept == state_bytes(groups, "apollo") == 4 * (2 * 32 * 1024 + 1) < state_bytes(groups, "adamw") / 15
