"""KronA adds a Kronecker product of two small matrices to a frozen weight (Edalati et al. 2022, arXiv:2212.10650)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from peftkit.layers.kronecker import factors, product, side
from peftkit.layout import Layout, Site
from peftkit.method import Method, Targeted
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta


@dataclass(frozen=True, kw_only=True)
class KroneckerSides(Method):
    """A method of Kronecker products A [a1, a2], B [b1, b2]: the sides of A."""

    size: ClassVar[str | None] = "factor"

    factor: Annotated[int, Ge(1)] | None = None
    """Sides of A: this number, or the largest divisor below it; by default the divisor next to the square root."""
    scale: Annotated[float, Gt(0)] = 1.0
    """The factor s of the product."""

    def sizes(self, layout: Layout) -> list[int]:
        sides = {size for site in self.sites(layout) for size in (site.inputs, site.outputs)}
        factors = {factor for size in sides for factor in range(1, size + 1) if size % factor == 0}
        # Of factors that store alike (A and B change places) the smallest is kept.
        smallest = {replace(self, factor=factor)._numbers(layout): factor for factor in sorted(factors, reverse=True)}
        return [smallest[count] for count in sorted(smallest)]

    def _numbers(self, layout: Layout) -> int:
        sides = [(self.side(s.outputs), self.side(s.inputs), s) for s in self.sites(layout)]
        return sum(a1 * a2 + (site.outputs // a1) * (site.inputs // a2) for a1, a2, site in sides)

    def side(self, size: int) -> int:
        """Return the side of A in a dimension of the weight; it divides `size`."""
        return side(size, self.factor)


@dataclass(frozen=True, kw_only=True)
class KronA(KroneckerSides, Targeted, name="krona"):
    """W + s (A kron B) with A [a1, a2], B [b1, b2], a1 b1 = out, a2 b2 = in; its rank is rank A times rank B.

    A starts from the Kaiming uniform distribution and B from zero, which is thus the base.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Edalati et al. 2022, arXiv:2212.10650"
    summary: ClassVar[str] = (
        "Adds a Kronecker product of two small trainable matrices, of full rank with few parameters. Merges into the "
        "weights."
    )
    default_learning_rate: ClassVar[float] = 0.1
    by_weight: ClassVar[bool] = True

    def build(self, site: Site) -> Adapter:
        return Kronecker(site, self)


class Kronecker(Delta):
    """A pair A [a1, a2], B [b1, b2] whose Kronecker product [out, in] is added to a frozen linear."""

    def __init__(self, site: Site, method: KronA):
        super().__init__(site)
        self.scale = method.scale
        self.A, self.B = factors(site, method.side(site.outputs), method.side(site.inputs))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        return call(x) + product(self.A, self.B, x) * self.scale

    def delta(self, weight: Tensor) -> Tensor:
        return torch.kron(self.A, self.B) * self.scale
