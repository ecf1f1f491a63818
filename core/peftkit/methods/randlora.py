"""RandLoRA trains how many random low-rank bases add up to a change of full rank (Albert et al. 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from peftkit.layers.places import generator
from peftkit.layout import Layout, Site
from peftkit.method import Targeted
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta, linear


@dataclass(frozen=True, kw_only=True)
class RandLoRA(Targeted, name="randlora"):
    """W + s sum_n B_n diag(l_n) A diag(g_n), s = alpha / rank, with l [rank, n] and g [n, smaller side] trained.

    A [rank, smaller] is one random basis and B [larger, n, rank] has n of them, as many as give full rank; all weights
    share them and take their first rows and columns. They have the Kaiming uniform distribution at a deviation of one,
    follow from `projection_seed` and are not saved unless `save_projection` asks for it. l is zero and g one over the
    largest number of its sides at the start, which is thus the base. In the sum the pairs (rank, n) are counted
    rank by rank in A and n by n in B, as in the official code. A weight that is wider than tall is transposed.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Albert et al. 2025, arXiv:2502.00987"
    summary: ClassVar[str] = (
        "Trains the weights of random low-rank bases that all layers share. A change of full rank for as many numbers "
        "as LoRA; a lower rank has more of them."
    )
    default_learning_rate: ClassVar[float] = 0.0032
    by_weight: ClassVar[bool] = False

    rank: Annotated[int, Ge(1)] = 32
    """Rank of each basis; the smaller, the more bases and trained numbers."""
    alpha: Annotated[float, Gt(0)] = 640.0
    """Scale: the change is multiplied by alpha / rank."""
    projection_seed: Annotated[int, Ge(0)] = 0
    """Seed of the shared bases."""
    save_projection: bool = False
    """Save the shared bases instead of regenerating them from their seed."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an input element of the adapter in training."""

    def share(self, layout: Layout) -> nn.Module:
        sites = self.sites(layout)
        sides = [max(site.inputs for site in sites), max(site.outputs for site in sites)]
        return SharedBases(self, min(sides), max(sides))

    def build(self, site: Site) -> Adapter:
        return Combination(site, self)


class SharedBases(nn.Module):
    """The frozen bases A [rank, 1, smaller] and B [larger, n, rank] that all adapters share."""

    A: Tensor
    B: Tensor

    def __init__(self, method: RandLoRA, smaller: int, larger: int):
        super().__init__()
        drawn, rank = generator(method.projection_seed), method.rank
        for name, shape in (("A", (rank, 1, smaller)), ("B", (larger, math.ceil(smaller / rank), rank))):
            basis = torch.empty(shape)
            if not basis.is_meta:
                basis = torch.empty(shape, device="cpu").uniform_(-1, 1, generator=drawn) * math.sqrt(3)
            self.register_buffer(name, basis, persistent=method.save_projection)


class Combination(Delta):
    """The weights l [rank, n] and g [n, smaller side] of the bases at one site."""

    undecayed: tuple[str, ...] = ("l", "g")

    def __init__(self, site: Site, method: RandLoRA):
        super().__init__(site)
        self.scale, self.dropout = method.alpha / method.rank, method.dropout
        smaller = min(site.inputs, site.outputs)
        count = math.ceil(smaller / method.rank)
        self.l = nn.Parameter(torch.zeros(method.rank, count))
        self.g = nn.Parameter(torch.full((count, smaller), 1 / max(count, smaller)))

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return the pair [rank n, in] and [out, rank n] whose product is the change before the scale."""
        count, smaller = self.g.shape
        weighted = (self.l[..., None] * self.shared.A[..., :smaller] * self.g).flatten(0, 1)
        larger = max(self.site.inputs, self.site.outputs)
        fixed = self.shared.B[:larger, :count].flatten(1)
        return (weighted, fixed) if smaller == self.site.inputs else (fixed.T, weighted.T)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        inside = F.dropout(x, self.dropout, self.training) if self.dropout else x
        down, up = self.matrices()
        return call(x) + linear(linear(inside, down), up) * self.scale

    def delta(self, weight: Tensor) -> Tensor:
        down, up = self.matrices()
        return up @ down * self.scale
