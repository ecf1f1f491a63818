"""BOFT turns the inputs of a weight by a product of sparse orthogonal maps (Liu et al. 2023, arXiv:2311.06243)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.orthogonal import cayley, skew, turn
from peftkit.layout import Layout, Site
from peftkit.method import Targeted
from peftkit.methods.oft import block_at, divisors
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import LinearAdapter


@dataclass(frozen=True, kw_only=True)
class BOFT(Targeted, name="boft"):
    """diag(s) W R' with R = R_m … R_1 [in, in]; R_i is block-diagonal between a butterfly and its inverse.

    R_1 is that of OFT. For R_i the half blocks of each run of 2^(i - 1) blocks are sorted, those of even number first,
    so that after m factors each input has reached 2^(m - 1) blocks. Skew-symmetric matrices are zero and s [out] one
    at the start, which is thus the base. Of each skew-symmetric matrix the upper triangle is trained and saved, half
    of what the official code has; the code has m = 1 wherever its kernel for CUDA is not built.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Liu et al. 2023, arXiv:2311.06243"
    summary: ClassVar[str] = (
        "OFT with several factors, so that all inputs mix through small blocks, and a scale for each output. Fewer "
        "numbers than OFT for the same reach."
    )
    default_learning_rate: ClassVar[float] = 0.18
    by_weight: ClassVar[bool] = True
    size: ClassVar[str | None] = "block"

    block: Annotated[int, Ge(2)] = 4
    """Size of each orthogonal matrix; where it does not divide the inputs, the next divisor below it."""
    factors: Annotated[int, Ge(1)] = 1
    """Number m of factors; with several, blocks are of even size and their number is a multiple of 2^(m - 1)."""
    terms: Annotated[int, Ge(4)] | None = None
    """Powers of Q in the series that stands for the inverse; by default the inverse itself."""

    def sites(self, layout: Layout) -> list[Site]:
        sites = super().sites(layout)
        for site in sites:
            block = block_at(self.name, self.block, site)
            run = block * 2 ** (self.factors - 1)
            if self.factors > 1 and (block % 2 or site.inputs % run):
                raise PeftkitError(
                    f"{self.name}: {self.factors} factors want blocks of even size and runs of 2^{self.factors - 1} of "
                    f"them, and {site.id} has {site.inputs} inputs in blocks of {block}: choose fewer factors."
                )
        return sites

    def sizes(self, layout: Layout) -> list[int]:
        return divisors(self.sites(layout))

    def build(self, site: Site) -> Adapter:
        return Butterfly(site, self)


class Butterfly(LinearAdapter):
    """The upper triangles Q [m, blocks, block (block - 1) / 2] and the scales s [out]."""

    order: Tensor

    def __init__(self, site: Site, method: BOFT):
        super().__init__(site)
        self.block, self.terms = block_at(method.name, method.block, site), method.terms
        shape = (method.factors, site.inputs // self.block, self.block * (self.block - 1) // 2)
        self.Q, self.s = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.ones(site.outputs))

    def turned(self, x: Tensor, back: bool = False) -> Tensor:
        """Return x R [..., in], or x R' with `back`."""
        blocks = cayley(skew(self.Q, self.block), self.terms)
        for number in range(len(blocks)) if back else reversed(range(len(blocks))):
            factor = blocks[number].mT if back else blocks[number]
            order = butterfly(x.shape[-1], self.block, number).to(x.device)
            x = turn(x[..., order.argsort()], factor)[..., order] if number else turn(x, factor)
        return x

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y, own = call(self.turned(x)), self.frozen_bias()
        scale = self.s.to(y.dtype)
        return y * scale if own is None else (y - own.to(y.dtype)) * scale + own.to(y.dtype)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        merged, own = self.s[:, None] * self.turned(weight, back=True), self.frozen_bias()
        if bias is None:
            return merged, None
        return merged, self.s * bias if own is None else own + self.s * (bias - own)


def butterfly(size: int, block: int, number: int) -> Tensor:
    """Return the order [size] in which factor `number` takes the inputs: in each run, half blocks of even number first.

    A run is 2^number blocks, and two inputs that one block of the factor mixes are half a run apart.
    """
    halves = torch.arange(size).view(-1, 2**number, 2, block // 2)
    return halves.transpose(1, 2).flatten() if number else torch.arange(size)
