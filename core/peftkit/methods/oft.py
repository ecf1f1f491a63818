"""OFT turns the inputs of a weight by an orthogonal map in blocks (Qiu et al. 2023, arXiv:2306.07280)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.orthogonal import cayley, skew, turn
from peftkit.layout import Layout, Site
from peftkit.method import Targeted
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import LinearAdapter


@dataclass(frozen=True, kw_only=True)
class OFT(Targeted, name="oft"):
    """W R' with R block-diagonal of R_j = (I + Q_j)(I - Q_j)^-1 [block, block], Q_j skew-symmetric, zero at the start.

    The inputs are turned before the frozen product, x R, so that no weight is built (OFTv2, Qiu et al. 2025,
    arXiv:2506.19847), and packed ones stay packed. With `terms` the inverse is its series, which is near orthogonal
    while Q is small; without, R is orthogonal. `constraint` keeps every |Q_j| below it (COFT).
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Qiu et al. 2023, arXiv:2306.07280"
    summary: ClassVar[str] = (
        "Turns the inputs of frozen weights by small orthogonal matrices. What the weights do to lengths and angles "
        "stays as it was trained."
    )
    default_learning_rate: ClassVar[float] = 0.032
    by_weight: ClassVar[bool] = True
    size: ClassVar[str | None] = "block"

    block: Annotated[int, Ge(2)] = 32
    """Size of each orthogonal matrix; where it does not divide the inputs, the next divisor below it."""
    terms: Annotated[int, Ge(4)] | None = None
    """Powers of Q in the series that stands for the inverse; by default the inverse itself."""
    block_share: bool = False
    """Whether all blocks of a weight have one matrix."""
    constraint: Annotated[float, Gt(0)] | None = None
    """Largest Frobenius norm of each Q; no bound by default."""

    def sites(self, layout: Layout) -> list[Site]:
        sites = super().sites(layout)
        for site in sites:
            block_at(self.name, self.block, site)
        return sites

    def sizes(self, layout: Layout) -> list[int]:
        return divisors(self.sites(layout))

    def build(self, site: Site) -> Adapter:
        return Rotation(site, self)

    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        if self.constraint is not None:
            for adapter in cast(Mapping[str, Any], adapters).values():
                adapter.Q.data.copy_(_within(adapter.Q.data, self.constraint))


class Rotation(LinearAdapter):
    """The upper triangles Q [blocks, block (block - 1) / 2] of skew-symmetric matrices."""

    def __init__(self, site: Site, method: OFT):
        super().__init__(site)
        self.block, self.terms = block_at(method.name, method.block, site), method.terms
        count = 1 if method.block_share else site.inputs // self.block
        self.Q = nn.Parameter(torch.zeros(count, self.block * (self.block - 1) // 2))

    def blocks(self) -> Tensor:
        """Return R_j [blocks, block, block]."""
        return cayley(skew(self.Q, self.block), self.terms)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        return call(turn(x, self.blocks()))

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return turn(weight, self.blocks().mT), bias


def block_at(name: str, block: int, site: Site) -> int:
    """Return the size of blocks at a site, the largest divisor of its inputs up to `block`; 1 is a PeftkitError."""
    found = next(size for size in range(min(block, site.inputs), 0, -1) if site.inputs % size == 0)
    if found == 1:
        raise PeftkitError(
            f"{name}: no block of 2 to {block} divides the {site.inputs} inputs of {site.id}: choose a larger block, "
            "or leave it out of targets."
        )
    return found


def divisors(sites: list[Site]) -> list[int]:
    """Return what divides the inputs of every site, from 2 on."""
    most = min(site.inputs for site in sites)
    return [size for size in range(2, most + 1) if all(site.inputs % size == 0 for site in sites)]


def _within(values: Tensor, bound: float) -> Tensor:
    # An entry above the diagonal stands below it too.
    norms = values.norm(dim=-1, keepdim=True) * 2**0.5
    return values * (bound / norms.clamp(min=bound))
