"""HRA turns the inputs of a weight by a chain of Householder reflections (Yuan et al. 2024, arXiv:2405.17484)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from peftkit.layers.orthogonal import reflections
from peftkit.layout import Layout, Site
from peftkit.method import LARGEST_SIZE, Ranked
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import LinearAdapter, linear


@dataclass(frozen=True, kw_only=True)
class HRA(Ranked, name="hra"):
    """W H_1 … H_r with H_i = I - 2 u_i u_i' / |u_i|^2 and U [in, rank]: an orthogonal map whose change has rank r.

    Reflections come in pairs of equal vectors at the start, which undo each other: that is the base, and the rank is
    even. The chain is I - Y X' with X and Y [in, rank], so that it costs what LoRA does. With
    `orthogonality` the loss gains that times |U'U - I|^2 over unit vectors, the paper's regulariser; its limit of
    orthonormal vectors (Gram-Schmidt) has no start that is the base and is left out.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Yuan et al. 2024, arXiv:2405.17484"
    summary: ClassVar[str] = (
        "Turns the inputs of frozen weights by a few reflections. Lengths and angles between inputs stay as they are, "
        "for half of LoRA's numbers."
    )
    default_learning_rate: ClassVar[float] = 0.1
    by_weight: ClassVar[bool] = True

    rank: Annotated[int, Ge(2), MultipleOf(2)] = 8
    """Number of reflections."""
    orthogonality: Annotated[float, Ge(0)] = 0.0
    """Weight of the penalty that keeps the vectors apart."""

    def sizes(self, layout: Layout) -> range:
        return range(2, LARGEST_SIZE, 2)

    def rank_at(self, site: Site) -> int:
        return super().rank_at(site) // 2 * 2

    def build(self, site: Site) -> Adapter:
        return Reflections(site, self.rank_at(site))

    def penalty(self, adapters: Mapping[str, Adapter]) -> Tensor | None:
        if not self.orthogonality:
            return None
        units = [F.normalize(cast(Reflections, adapter).U, dim=-2) for adapter in adapters.values()]
        return self.orthogonality * torch.stack([_skew(unit) for unit in units]).sum()


class Reflections(LinearAdapter):
    """The vectors U [in, rank] of the reflections."""

    def __init__(self, site: Site, rank: int):
        super().__init__(site)
        half = torch.empty(site.inputs, rank // 2)
        nn.init.kaiming_uniform_(half, a=math.sqrt(5))
        self.U = nn.Parameter(half.repeat_interleave(2, dim=1))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        inner, outer = reflections(self.U)
        return call(x - linear(linear(x, inner.T), outer))

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        inner, outer = reflections(self.U)
        return weight - weight @ outer @ inner.T, bias


def _skew(unit: Tensor) -> Tensor:
    products = unit.mT @ unit
    return (products - torch.eye(products.shape[-1], device=unit.device)).square().sum()
