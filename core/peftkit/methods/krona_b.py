"""KronA^B runs a Kronecker product beside a feed-forward block (Edalati et al. 2022, arXiv:2212.10650)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from peftkit.layers.kronecker import factors, product
from peftkit.layout import Site
from peftkit.methods.krona import KroneckerSides
from peftkit.methods.parallel_adapter import Beside
from peftkit.ports.adapter import Adapter, Call


@dataclass(frozen=True, kw_only=True)
class KronAB(KroneckerSides, Beside, name="krona-b"):
    """The sublayer f gives f(x) + s (A (x) B) x; shapes and start are those of `krona`, and x is what f reads.

    The start is the base. It is linear, and yet beside a block that is not, so that no weight equals it.
    """

    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Edalati et al. 2022, arXiv:2212.10650"
    summary: ClassVar[str] = (
        "Runs a Kronecker product of two small trainable matrices beside each feed-forward block, on the same input. "
        "It stays beside the model."
    )
    default_learning_rate: ClassVar[float] = 0.18
    # A square map has few factors: budgets between them cannot be met.
    size: ClassVar[str | None] = None

    def build(self, site: Site) -> Adapter:
        return KroneckerBeside(site, self, residual=False)


class KroneckerBeside(Adapter):
    """A [a1, a2] and B [b1, b2] beside a sublayer and, where there is a `residual`, its factor r [1]."""

    def __init__(self, site: Site, method: KronAB, residual: bool):
        super().__init__(site)
        self.scale = method.scale
        self.A, self.B = factors(site, method.side(site.outputs), method.side(site.inputs))
        self.r = nn.Parameter(torch.zeros(1)) if residual else None

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x) + product(self.A, self.B, x) * self.scale
        return y if self.r is None else y + x * self.r.to(x.dtype)
