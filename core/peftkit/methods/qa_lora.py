"""QA-LoRA pools the input of LoRA by group, so that it merges into zero points (Xu et al. 2023, arXiv:2309.14717)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.layout import Layout, Site
from peftkit.methods.inits import INITS
from peftkit.methods.lora import LoRA
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import linear
from peftkit.ports.stored import StoredDelta, check_stored, groups, spread
from peftkit.quantization.weight import ZERO_POINTS


@dataclass(frozen=True, kw_only=True)
class QALoRA(LoRA, name="qa-lora"):
    """W x + s B A pool(x) with A [rank, groups] and B [out, rank], which is zero at the start.

    `pool` brings each quantization group of g inputs to one number: their sum in the paper, their mean in the official
    code, which is the default here. Within a group the change of W is thus one number, and z - s B A / scale (over g,
    with the mean) are zero points that hold it: the merged model keeps its codes and scales, and has zero points in
    fp32. A rank above the number of groups adds nothing that fewer cannot.
    """

    port: ClassVar[str] = "linear, quantized"
    family: ClassVar[str] = "quantization"
    paper: ClassVar[str] = "Xu et al. 2023, arXiv:2309.14717"
    summary: ClassVar[str] = (
        "LoRA on inputs that are pooled by quantization group. It merges into the zero points of a base stored as "
        "integers, whose codes stay as they are."
    )
    plain_pair: ClassVar[bool] = False
    by_weight: ClassVar[bool] = False
    needs: ClassVar[str | None] = ZERO_POINTS
    default_learning_rate: ClassVar[float] = 0.32

    pool: Literal["mean", "sum"] = "mean"
    """How the inputs of a group become one: their mean (official code) or their sum (paper)."""

    def sites(self, layout: Layout) -> list[Site]:
        return check_stored(super().sites(layout), self.name, self.needs)

    def build(self, site: Site) -> Adapter:
        return Pooled(site, self)


class Pooled(StoredDelta):
    """A pair A [rank, groups] and B [out, rank] in fp32 behind the pooled input of a frozen linear."""

    factors: tuple[str, str] | None = ("A", "B")

    def __init__(self, site: Site, method: QALoRA):
        super().__init__(site)
        rank, count = method.rank_at(site), groups(site)
        self.scale, self.dropout = method.scale_at(site), method.dropout
        self.share = count / site.inputs if method.pool == "mean" else 1.0
        self.A = nn.Parameter(torch.empty(rank, count))
        self.B = nn.Parameter(torch.empty(site.outputs, rank))
        INITS[method.init](self)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        inside = F.dropout(x, self.dropout, self.training) if self.dropout else x
        pooled = inside.unflatten(-1, (self.A.shape[1], -1)).sum(-1) * self.share
        return call(x) + linear(linear(pooled, self.A), self.B) * self.scale

    def delta(self, weight: Tensor) -> Tensor:
        return spread(self._offset(), self.site.inputs)

    def shift(self) -> tuple[Tensor | None, Tensor | None]:
        return None, self._offset().detach()

    def _offset(self) -> Tensor:
        """Return what is added to each group of the weight [out, groups]."""
        return (self.B @ self.A) * (self.scale * self.share)
