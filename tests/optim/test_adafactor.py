"""Adafactor against its formulas: a factored second moment, the cut of the update, and steps from zero."""

from __future__ import annotations

import math

import pytest
import torch

from peftkit.optim.build import Optimizers, state_bytes

RATE, DECAY = 0.1, 0.5


def drawn(shape, seed, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(parameters):
    keys = [str(index) for index in range(len(parameters))]
    group = {"params": parameters, "keys": keys, "lr": RATE, "weight_decay": DECAY}
    return Optimizers([group], betas=(0.5, 0.5), eps=1e-8, default="adafactor")


def expected(x, gradients):
    """Take the steps by arXiv:1804.04235, algorithms 4 and 5, the scale of x counted from one on."""
    rows = columns = whole = 0
    for t, g in enumerate(gradients, 1):
        share = 1 - t**-0.8
        scale = max(1.0, x.square().mean().sqrt().item()) * min(RATE, 1 / math.sqrt(t))
        x = x * (1 - RATE * DECAY)
        if g.ndim > 1:
            rows = share * rows + (1 - share) * g.square().mean(-1, keepdim=True)
            columns = share * columns + (1 - share) * g.square().mean(-2, keepdim=True)
            moment = rows * columns / rows.mean(-2, keepdim=True)
        else:
            moment = whole = share * whole + (1 - share) * g.square()
        u = g / moment.sqrt()
        x = x - scale * u / max(1.0, u.square().mean().sqrt().item())
    return x


@pytest.mark.parametrize("shape", [(6, 4), (5,), (3, 4, 5)])
@pytest.mark.parametrize("size", [0.0, 1.0, 7.0])
def test_two_steps_follow_the_formulas(shape, size):
    x = torch.nn.Parameter(drawn(shape, 1, size))
    start, optimizer = x.detach().clone(), build([x])
    gradients = [drawn(shape, 2, 3.0), drawn(shape, 3, 0.1)]
    for gradient in gradients:
        x.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(x, expected(start, gradients), atol=1e-12, rtol=1e-9)


def test_a_tensor_at_zero_moves_by_the_rate():
    x = torch.nn.Parameter(torch.zeros(64, 32))
    optimizer = build([x])
    x.grad = drawn((64, 32), 0, 1e-3).float()
    optimizer.step()
    assert x.square().mean().sqrt().item() == pytest.approx(RATE, rel=0.05)


def test_rows_and_columns_alone_are_kept():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(48, 32)), torch.nn.Parameter(torch.zeros(7))], "keys": "ab"}]
    assert state_bytes(groups, "adafactor") == 4 * (48 + 32 + 7)
