"""MiSS repeats one small matrix over all blocks of a weight's inputs (Kang and Yin 2024, arXiv:2409.15371)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.method import Ranked
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta, linear


@dataclass(frozen=True, kw_only=True)
class MiSS(Ranked, name="miss"):
    """W + (D repeated along the inputs) with D [rank, out], zero at the start: column i gains D[i mod rank].

    `variant: mini` has D [rank, mini] and repeats it along the outputs too. `variant: bat` has a matrix D_j [rank,
    rank] for each block of outputs and adds D_j + W_ij' D_j to the block (i, j) of W, a change that follows the
    weight; the rank divides both sides then.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Kang and Yin 2024, arXiv:2409.15371"
    summary: ClassVar[str] = (
        "Adds one small matrix to every block of a weight's inputs. Half of LoRA's numbers, one product and no random "
        "start."
    )
    default_learning_rate: ClassVar[float] = 0.018
    by_weight: ClassVar[bool] = True

    variant: Literal["standard", "mini", "bat"] = "standard"
    """How the matrix is spread over the weight."""
    mini: Annotated[int, Ge(1)] = 1
    """Columns of D in the variant mini; they divide the outputs."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an input element of the adapter in training."""

    def sites(self, layout: Layout) -> list[Site]:
        sites = super().sites(layout)
        for site in sites:
            rank = self.rank_at(site)
            if self.variant == "bat" and (site.inputs % rank or site.outputs % rank):
                raise PeftkitError(
                    f"{self.name}: rank {rank} does not divide both sides of {site.id} [{site.outputs}, {site.inputs}],"
                    " which the variant bat wants: choose a common divisor."
                )
            if self.variant == "mini" and site.outputs % self.mini:
                raise PeftkitError(
                    f"{self.name}: mini {self.mini} does not divide the {site.outputs} outputs of {site.id}."
                )
        return sites

    def build(self, site: Site) -> Adapter:
        return Shards(site, self)


class Shards(Delta):
    """D as [rank, out], [rank, mini] or, in the variant bat, [out / rank, rank, rank]."""

    def __init__(self, site: Site, method: MiSS):
        super().__init__(site)
        rank = method.rank_at(site)
        self.variant, self.dropout = method.variant, method.dropout
        shapes = {"standard": (rank, site.outputs), "mini": (rank, method.mini)}
        self.D = nn.Parameter(torch.zeros(shapes.get(method.variant, (site.outputs // rank, rank, rank))))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        inside = F.dropout(x, self.dropout, self.training) if self.dropout else x
        if self.variant == "bat":
            return call(x) + linear(inside, self.delta(self.weight()))
        rank, width = self.D.shape
        blocks = F.pad(inside, (0, -inside.shape[-1] % rank)).unflatten(-1, (-1, rank)).sum(-2)
        return call(x) + linear(blocks, self.D.T).repeat(*[1] * (x.ndim - 1), self.site.outputs // width)

    def delta(self, weight: Tensor) -> Tensor:
        outputs, inputs = self.site.outputs, self.site.inputs
        if self.variant != "bat":
            rank, width = self.D.shape
            return self.D.T.repeat(outputs // width, -(-inputs // rank))[:, :inputs]
        rank = self.D.shape[-1]
        frozen = self.weight().detach().to(self.D.dtype)
        blocks = frozen.reshape(outputs // rank, rank, inputs // rank, rank).permute(2, 0, 1, 3)
        return (blocks @ self.D + self.D).permute(1, 2, 0, 3).reshape(outputs, inputs)
