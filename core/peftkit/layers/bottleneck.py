"""A bottleneck of two matrices with a function between them, around a sublayer."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.layers.gate import Gate
from peftkit.layout import Site
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import linear

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
Activation = Literal["gelu", "gelu_new", "relu", "silu", "tanh"]
"""`gelu_new` is the approximation of gelu by tanh, under the name that transformers has for it."""


class Bottleneck(Adapter):
    """s (U act(D x + b) + c) with D [r, width], U [width, r], in fp32, added to the output of its module.

    x is that output or, `beside` the module, its input; a `gated` one is multiplied by a gate of x, and a `normed`
    one reads x after a layer norm of its own. b, U and c start at zero, so that the start is the base.
    """

    def __init__(
        self,
        site: Site,
        size: int,
        activation: str,
        *,
        beside: bool = False,
        scale: float = 1.0,
        gated: bool = False,
        normed: bool = False,
    ):
        super().__init__(site)
        self.act, self.beside, self.scale = ACTIVATIONS[activation], beside, scale
        width = site.inputs if beside else site.outputs
        self.D = nn.Parameter(torch.empty(size, width))
        self.b = nn.Parameter(torch.zeros(size))
        self.U = nn.Parameter(torch.zeros(site.outputs, size))
        self.c = nn.Parameter(torch.zeros(site.outputs))
        nn.init.kaiming_uniform_(self.D, a=5**0.5)
        self.gate = Gate(width) if gated else None
        self.norm = nn.LayerNorm(width) if normed else None

    def inner(self, x: Tensor) -> Tensor:
        """Return what is added for hidden states x [..., width]."""
        x = x if self.norm is None else self.norm(x.to(self.norm.weight.dtype)).to(x.dtype)
        added = linear(self.act(linear(x, self.D, self.b)), self.U, self.c)
        added = added if self.scale == 1 else added * self.scale
        return added if self.gate is None else added * self.gate(x)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        return y + self.inner(x if self.beside else y).to(y.dtype)
