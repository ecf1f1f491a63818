"""KAdaptation adds a sum of Kronecker products whose first factors all layers share (He et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from peftkit.layers.kronecker import Rule
from peftkit.layout import Layout, Site
from peftkit.method import Targeted
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta, linear


@dataclass(frozen=True, kw_only=True)
class KAdaptation(Targeted, name="kadaptation"):
    """W + s sum_i A_i (x) (u_i v_i) with A [n, n, n] shared by all sites, u [n, out / n, rank], v [n, rank, in / n].

    A is drawn from N(0, 1 / n), v from the Kaiming uniform distribution (a = sqrt 5), and u is zero, so that the start
    is the base. A site with fewer products takes the first of A. The official code gives the maps of values the factors
    of those of queries, and starts both factors at zero in one of its modes, where no gradient ever comes; here each
    site has its own, and one factor alone is zero.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "He et al. 2022, arXiv:2203.16329"
    summary: ClassVar[str] = (
        "Adds a sum of Kronecker products of small matrices that all layers share and low-rank ones of their own. "
        "Merges into the weights."
    )
    default_learning_rate: ClassVar[float] = 0.056
    size: ClassVar[str | None] = "rank"

    rank: Annotated[int, Ge(1)] = 1
    """Inner size of each u_i v_i; it may exceed the sizes of the parts."""
    division: Annotated[int, Ge(1)] = 8
    """Number n of products, or the largest below it that divides both sizes of a map; the paper has 32 at 768."""
    scale: Annotated[float, Gt(0)] = 1.0
    """The factor s of the sum."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an element of the change in training; the official code has 0.5."""

    def products(self, site: Site) -> int:
        """Return the number of products at a site: the largest up to `division` that divides both sizes."""
        both = math.gcd(site.inputs, site.outputs)
        return next(count for count in range(min(self.division, both), 0, -1) if both % count == 0)

    def share(self, layout: Layout) -> nn.Module:
        return Rule(self.division, self.division**-0.5)

    def build(self, site: Site) -> Adapter:
        return KroneckerSum(site, self)


class KroneckerSum(Delta):
    """The factors u [n, out / n, rank] and v [n, rank, in / n] of one site."""

    def __init__(self, site: Site, method: KAdaptation):
        super().__init__(site)
        n, rank = method.products(site), method.rank
        self.scale, self.dropout = method.scale, method.dropout
        self.u = nn.Parameter(torch.zeros(n, site.outputs // n, rank))
        # The bound of a = sqrt 5: one over the square root of the inputs.
        self.v = nn.Parameter(torch.empty(n, rank, site.inputs // n).uniform_(-1, 1) * (site.inputs // n) ** -0.5)

    @property
    def rule(self) -> Tensor:
        """The shared factors [n, n, n]."""
        n = len(self.u)
        return cast(Rule, self.shared).A[:n, :n, :n]

    def forward(self, call: Call, x: Tensor) -> Tensor:
        if self.dropout and self.training:
            return call(x) + linear(x, F.dropout(self.delta(x), self.dropout))
        A, u, v = (factor.to(x.dtype) for factor in (self.rule, self.u, self.v))
        inside = torch.einsum("...bd,ird->...irb", x.unflatten(-1, (len(A), -1)), v)
        outside = torch.einsum("...irb,iab->...ira", inside, A)
        return call(x) + torch.einsum("...ira,icr->...ac", outside, u).flatten(-2) * self.scale

    def delta(self, weight: Tensor) -> Tensor:
        blocks = torch.einsum("iab,icr,ird->acbd", self.rule, self.u, self.v)
        return blocks.reshape(self.site.outputs, self.site.inputs) * self.scale
