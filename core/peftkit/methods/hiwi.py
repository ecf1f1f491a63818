"""HiWi makes the change of a weight, or of a bias, from itself by a small adapter (Liao et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.bottleneck import ACTIVATIONS, Activation
from peftkit.layout import Layout, Site
from peftkit.method import Ranked, Targets
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import LinearAdapter, linear


@dataclass(frozen=True, kw_only=True)
class HiWi(Ranked, name="hiwi"):
    """W + s U f(D W) with D [rank, out], U [out, rank], column by column of W [out, in]; or b + s U f(D b) of biases.

    U is zero at the start, which is thus the base. What stands after training is a weight or a bias as before, so that
    it costs nothing. The paper's best places are the biases, which Llama and its kin lack; weights are the default
    here. f is computed once a pass, not once a token.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Liao et al. 2023, arXiv:2305.16742"
    summary: ClassVar[str] = (
        "Passes frozen weights or biases themselves through a small trained adapter. The outcome is a new weight, "
        "which costs nothing afterwards."
    )
    default_learning_rate: ClassVar[float] = 0.032
    by_weight: ClassVar[bool] = True

    of: Literal["weights", "biases"] = "weights"
    """What is passed through the adapter."""
    activation: Activation = "relu"
    """The function f."""
    scale: Annotated[float, Gt(0)] = 1.0
    """The factor s of the change."""
    targets: Targets = ("q", "v")

    def sites(self, layout: Layout) -> list[Site]:
        sites = super().sites(layout)
        bare = next((site.id for site in sites if getattr(site.module, "bias", None) is None), None)
        if self.of == "biases" and bare is not None:
            raise PeftkitError(f"{self.name}: {bare} has no bias: set of: weights, or leave it out of targets.")
        return sites

    def build(self, site: Site) -> Adapter:
        return Through(site, self)


class Through(LinearAdapter):
    """The matrices D [rank, out] and U [out, rank]."""

    def __init__(self, site: Site, method: HiWi):
        super().__init__(site)
        self.act, self.scale, self.of_bias = ACTIVATIONS[method.activation], method.scale, method.of == "biases"
        rank = method.rank_at(site)
        self.D, self.U = nn.Parameter(torch.empty(rank, site.outputs)), nn.Parameter(torch.zeros(site.outputs, rank))
        nn.init.kaiming_uniform_(self.D, a=math.sqrt(5))

    def change(self) -> Tensor:
        """Return what is added to the weight [out, in] or to the bias [out], made of the frozen one."""
        frozen = self.frozen_bias() if self.of_bias else self.weight()
        assert frozen is not None
        return self.U @ self.act(self.D @ frozen.detach().to(self.D.dtype)) * self.scale

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y, change = call(x), self.change()
        return y + (change.to(y.dtype) if self.of_bias else linear(x, change))

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not self.of_bias:
            return weight + self.change(), bias
        return weight, self.change() if bias is None else bias + self.change()
