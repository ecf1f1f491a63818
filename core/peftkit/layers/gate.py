"""A gate that hidden states open and close, token by token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftkit.ports.linear import linear


class Gate(nn.Module):
    """g [..., 1] = sigmoid(w x + b) for hidden states x [..., width]; w [1, width] from N(0, 0.02^2), b [1] zero.

    What it says of a token depends on that token alone, so that a decoder with gates stays causal.
    """

    def __init__(self, width: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(1, width) * 0.02)
        self.b = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate of each token."""
        return torch.sigmoid(linear(x, self.w, self.b))
