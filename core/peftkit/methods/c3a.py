"""C3A adds a weight made of circulant blocks (Chen et al. 2024, arXiv:2407.19342)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.circulant import circulant, product
from peftkit.layout import Layout, Site
from peftkit.method import Targeted
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta


@dataclass(frozen=True, kw_only=True)
class C3A(Targeted, name="c3a"):
    """W + C / in, C in circulant blocks [block, block] with the first rows w [out / block, in / block, block].

    The product is taken by FFT. w is zero at the start, which is thus the base (the paper draws it).
    The whole has out * in / block numbers and any rank.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Chen et al. 2024, arXiv:2407.19342"
    summary: ClassVar[str] = (
        "Adds circulant blocks, which act by the Fourier transform. The number of parameters falls with the size of "
        "the blocks, and the rank does not."
    )
    default_learning_rate: ClassVar[float] = 5.6
    by_weight: ClassVar[bool] = True
    size: ClassVar[str | None] = "block"

    block: Annotated[int, Ge(1)] | None = None
    """Size of the blocks, a divisor of both sides; by default the largest one."""

    def sites(self, layout: Layout) -> list[Site]:
        sites = super().sites(layout)
        for site in sites:
            if self.block is not None and math.gcd(site.inputs, site.outputs) % self.block:
                raise PeftkitError(
                    f"{self.name}: block {self.block} does not divide both sides of {site.id} [{site.outputs}, "
                    f"{site.inputs}]: choose a divisor of {math.gcd(site.inputs, site.outputs)}."
                )
        return sites

    def sizes(self, layout: Layout) -> list[int]:
        common = math.gcd(*(size for site in self.sites(layout) for size in (site.inputs, site.outputs)))
        # The larger the blocks, the fewer the numbers.
        return [size for size in range(common, 0, -1) if common % size == 0]

    def build(self, site: Site) -> Adapter:
        return Convolution(site, self.block or math.gcd(site.inputs, site.outputs))


class Convolution(Delta):
    """The first rows w [out / block, in / block, block] of circulant blocks."""

    def __init__(self, site: Site, block: int):
        super().__init__(site)
        self.w = nn.Parameter(torch.zeros(site.outputs // block, site.inputs // block, block))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        blocks = x.unflatten(-1, (-1, self.w.shape[-1]))
        return call(x) + product(blocks, self.w).flatten(-2) / self.site.inputs

    def delta(self, weight: Tensor) -> Tensor:
        return circulant(self.w).transpose(1, 2).flatten(2).flatten(0, 1) / self.site.inputs
