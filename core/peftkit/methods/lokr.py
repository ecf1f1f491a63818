"""LoKr adds a Kronecker product of a small matrix and a low-rank one (Yeh et al. 2023, arXiv:2309.14859)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from peftkit.layers.kronecker import product, side
from peftkit.layout import Layout, Site
from peftkit.method import Targeted
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta


@dataclass(frozen=True, kw_only=True)
class LoKr(Targeted, name="lokr"):
    """W + s (A kron B) with A [a1, a2], B [b1, b2], a1 b1 = out, a2 b2 = in, s = alpha / rank.

    Where the rank is below half the larger side of B, B is a product of [b1, rank] and [rank, b2]; with
    `decompose_both` A likewise. Where it is not, B is whole, and the method is KronA. A, or the first matrix of its
    product, is zero at the start, which is thus the base.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Yeh et al. 2023, arXiv:2309.14859"
    summary: ClassVar[str] = (
        "Adds a Kronecker product whose larger matrix is low-rank. Fewer numbers than LoRA or KronA; merges into the "
        "weights."
    )
    default_learning_rate: ClassVar[float] = 0.075
    by_weight: ClassVar[bool] = True
    size: ClassVar[str | None] = "rank"

    rank: Annotated[int, Ge(1)] = 8
    """Inner size of a matrix that is a product."""
    alpha: Annotated[float, Gt(0)] = 8.0
    """Scale: the change is multiplied by alpha / rank."""
    factor: Annotated[int, Ge(1)] | None = None
    """Sides of A: this number, or the largest divisor below it; by default the divisor next to the square root."""
    decompose_both: bool = False
    """Make A a product too, where it is larger than twice the rank."""

    def sizes(self, layout: Layout) -> range:
        # From half a side on B is whole.
        sides = [size // side(size, self.factor) for site in self.sites(layout) for size in (site.outputs, site.inputs)]
        return range(1, -(-max(sides) // 2) + 1)

    def build(self, site: Site) -> Adapter:
        return Decomposable(site, self)


class Decomposable(Delta):
    """A and B, each whole or as the product of [side, rank] and [rank, other side]."""

    def __init__(self, site: Site, method: LoKr):
        super().__init__(site)
        self.scale = method.alpha / method.rank
        a1, a2 = side(site.outputs, method.factor), side(site.inputs, method.factor)
        small, large = (a1, a2), (site.outputs // a1, site.inputs // a2)
        for key, shape, may_split in (("A", small, method.decompose_both), ("B", large, True)):
            parts = {key: shape}
            if may_split and method.rank < max(shape) / 2:
                parts = {f"{key}1": (shape[0], method.rank), f"{key}2": (method.rank, shape[1])}
            for name, own in parts.items():
                drawn = nn.Parameter(torch.empty(own))
                setattr(self, name, drawn)
                if name in ("A", "A1"):
                    nn.init.zeros_(drawn)
                else:
                    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return A [a1, a2] and B [b1, b2]."""
        left, right = (self._whole(key) for key in "AB")
        return left, right

    def _whole(self, key: str) -> Tensor:
        if hasattr(self, key):
            return getattr(self, key)
        return getattr(self, f"{key}1") @ getattr(self, f"{key}2")

    def forward(self, call: Call, x: Tensor) -> Tensor:
        return call(x) + product(*self.matrices(), x) * self.scale

    def delta(self, weight: Tensor) -> Tensor:
        return torch.kron(*self.matrices()) * self.scale
