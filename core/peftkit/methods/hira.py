"""HiRA multiplies a frozen weight by a low-rank matrix, element by element (Huang et al. 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from peftkit.layout import Site
from peftkit.method import Ranked
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta, linear


@dataclass(frozen=True, kw_only=True)
class HiRA(Ranked, name="hira"):
    """W + W * (B A) with A [rank, in], B [out, rank]; B is zero at the start, which is thus the base.

    The rank of W * (B A) is at most rank W times `rank`, so that the change has as high a rank as W. Nothing scales
    it. On a packed base W is what the codes stand for.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Huang et al. 2025, ICLR 2025"
    summary: ClassVar[str] = (
        "Adds the product, element by element, of the frozen weight and a low-rank matrix. A change of high rank for "
        "the numbers of LoRA, and it merges."
    )
    default_learning_rate: ClassVar[float] = 0.18
    by_weight: ClassVar[bool] = False

    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an input element of the adapter in training."""

    def build(self, site: Site) -> Adapter:
        return Modulated(site, self.rank_at(site), self.dropout)


class Modulated(Delta):
    """The pair A [rank, in], B [out, rank] whose product multiplies the frozen weight."""

    factors: tuple[str, str] | None = ("A", "B")

    def __init__(self, site: Site, rank: int, dropout: float):
        super().__init__(site)
        self.dropout = dropout
        self.A = nn.Parameter(torch.empty(rank, site.inputs))
        self.B = nn.Parameter(torch.zeros(site.outputs, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        inside = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return call(x) + linear(inside, self.delta(self.weight()))

    def delta(self, weight: Tensor) -> Tensor:
        # The frozen weight even where adapters further in have changed it: so does `forward`.
        return self.weight().detach() * (self.B @ self.A)
