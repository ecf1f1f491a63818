"""A small map from the rows of one model's prompts to those of another's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE = 1e-2
"""Adam's, when a projector is fitted."""


def projector(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return W2 tanh(W1 x + b1) + b2."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def fit_rows(module: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """Fit a map of rows x [n, inputs] to rows y [n, outputs] by the mean square of the differences."""
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(module(x), y).backward()
            optimizer.step()
    optimizer.zero_grad()
