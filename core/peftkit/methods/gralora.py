"""GraLoRA gives each block of a weight a low-rank pair of its own (Jung et al. 2025, arXiv:2505.20355)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.method import LARGEST_SIZE, Ranked
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta, linear


@dataclass(frozen=True, kw_only=True)
class GraLoRA(Ranked, name="gralora"):
    """W in k x k blocks; block (j, i) gains s B_ji A_ji with A_ji [rank / k, in / k], B_ji [out / k, rank / k].

    s = alpha / (rank + hybrid). Every B is zero at the start, which is thus the base. With `hybrid` a plain pair of
    that rank over the whole weight is added at the same scale. A and B have LoRA's size, and the rank of the change is
    up to k times as high.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Jung et al. 2025, arXiv:2505.20355"
    summary: ClassVar[str] = (
        "LoRA for each block of the weight by itself, so that an outlying input disturbs its own blocks alone. As many "
        "numbers as LoRA of the same rank."
    )
    default_learning_rate: ClassVar[float] = 0.032
    by_weight: ClassVar[bool] = True

    alpha: Annotated[float, Gt(0)] = 16.0
    """Scale: the change is multiplied by alpha / (rank + hybrid)."""
    blocks: Annotated[int, Ge(1)] = 2
    """Blocks k along each side of the weight; they divide both sides and the rank."""
    hybrid: Annotated[int, Ge(0)] = 0
    """Rank of a plain pair beside the blocks."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an input element of the adapter in training."""

    def sites(self, layout: Layout) -> list[Site]:
        sites = super().sites(layout)
        for site in sites:
            sizes = {"rank": self.rank_at(site), "inputs": site.inputs, "outputs": site.outputs}
            wrong = next((f"{size} {what}" for what, size in sizes.items() if size % self.blocks), None)
            if wrong is not None:
                raise PeftkitError(
                    f"{self.name}: {self.blocks} blocks do not divide {wrong} of {site.id}: choose a number of blocks "
                    "that divides the rank and both sides of each weight, or leave it out of targets."
                )
        return sites

    def sizes(self, layout: Layout) -> range:
        return range(self.blocks, LARGEST_SIZE, self.blocks)

    def build(self, site: Site) -> Adapter:
        return Blocks(site, self)


class Blocks(Delta):
    """A [k, rank, in / k] of the blocks of inputs, B [k, out / k, rank] of those of outputs, and a plain pair.

    The rank is in k runs: run j of A_i and run i of B_j belong to block (j, i).
    """

    def __init__(self, site: Site, method: GraLoRA):
        super().__init__(site)
        rank, self.k = method.rank_at(site), method.blocks
        self.scale, self.dropout = method.alpha / (method.rank + method.hybrid), method.dropout
        self.A = nn.Parameter(torch.empty(self.k, rank, site.inputs // self.k))
        self.B = nn.Parameter(torch.zeros(self.k, site.outputs // self.k, rank))
        for block in self.A.data:
            nn.init.kaiming_uniform_(block, a=math.sqrt(5))
        if method.hybrid:
            self.plain_A = nn.Parameter(torch.empty(method.hybrid, site.inputs))
            self.plain_B = nn.Parameter(torch.zeros(site.outputs, method.hybrid))
            nn.init.kaiming_uniform_(self.plain_A, a=math.sqrt(5))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        inside = F.dropout(x, self.dropout, self.training) if self.dropout else x
        parts = torch.einsum("...ni,nri->...nr", inside.unflatten(-1, (self.k, -1)), self.A.to(x.dtype))
        crossed = parts.unflatten(-1, (self.k, -1)).transpose(-3, -2).flatten(-2)
        y = torch.einsum("...nr,nor->...no", crossed, self.B.to(x.dtype)).flatten(-2)
        if "plain_A" in self._parameters:
            y = y + linear(linear(inside, self.plain_A), self.plain_B)
        return call(x) + y * self.scale

    def delta(self, weight: Tensor) -> Tensor:
        down, up = self.A.unflatten(1, (self.k, -1)), self.B.unflatten(2, (self.k, -1))
        change = torch.einsum("joir,ijra->joia", up, down).flatten(2).flatten(0, 1)
        if "plain_A" in self._parameters:
            change = change + self.plain_B @ self.plain_A
        return change * self.scale
