"""Lion by hand: the sign of the interpolated momentum, decoupled decay, and a momentum that follows more slowly."""

from __future__ import annotations

import pytest
import torch

from peftkit.optim.build import Optimizers, state_bytes


def test_two_steps_by_hand():
    x = torch.nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    group = {"params": [x], "keys": ["x"], "lr": 0.1, "weight_decay": 0.5}
    optimizer = Optimizers([group], betas=(0.9, 0.99), default="lion")
    x.grad = torch.tensor([2.0, 2.0, 0.0])
    optimizer.step()
    # (1 - 0.1 * 0.5) x - 0.1 sign(0.1 g), and nothing to go along where there is no gradient.
    assert x.tolist() == pytest.approx([0.85, 0.85, 0.95])
    assert optimizer.state()["x/exp_avg"].tolist() == pytest.approx([0.02, 0.02, 0.0])
    x.grad = torch.tensor([-1.0, -0.1, 0.0])
    optimizer.step()
    # 0.9 * 0.02 + 0.1 g is -0.082 and 0.008: the momentum holds against a small gradient.
    assert x.tolist() == pytest.approx([0.9075, 0.7075, 0.9025])
    assert optimizer.state()["x/exp_avg"].tolist() == pytest.approx([0.0098, 0.0188, 0.0])
    assert state_bytes([group], "lion") == 3 * 4
