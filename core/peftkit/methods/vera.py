"""VeRA trains two vectors a layer around random matrices that all layers share (Kopiczko et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from peftkit.layout import Layout, Site
from peftkit.method import Targeted
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta, linear


@dataclass(frozen=True, kw_only=True)
class VeRA(Targeted, name="vera"):
    """W + diag(b) B diag(d) A with b [out] and d [rank] trained, A [rank, in] and B [out, rank] frozen and random.

    A and B have the largest in and out of all sites, and each site takes their first columns and rows. They follow
    from `projection_seed` by torch's generator of the CPU, the same on every machine, and are not saved unless
    `save_projection` asks for it. b is zero and d 0.1 at the start, which is thus the base.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Kopiczko et al. 2023, arXiv:2310.11454"
    summary: ClassVar[str] = (
        "Trains two vectors for each layer around a random low-rank pair shared by all. A tenth of LoRA's numbers."
    )
    default_learning_rate: ClassVar[float] = 0.18
    rate_falls_with_width: ClassVar[bool] = False
    by_weight: ClassVar[bool] = True
    size: ClassVar[str | None] = "rank"

    rank: Annotated[int, Ge(1)] = 256
    """Inner size of the shared pair; it may exceed the layers' sizes."""
    start: float = 0.1
    """The value of d at the start."""
    projection_seed: Annotated[int, Ge(0)] = 0
    """Seed of the shared matrices."""
    save_projection: bool = False
    """Save the shared matrices instead of regenerating them from their seed."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an input element of the adapter in training."""

    def share(self, layout: Layout) -> nn.Module:
        sites = self.sites(layout)
        return Projection(self, max(site.inputs for site in sites), max(site.outputs for site in sites))

    def build(self, site: Site) -> Adapter:
        return Vectors(site, self)


class Projection(nn.Module):
    """The frozen pair A [rank, in], B [out, rank] that all adapters share."""

    A: Tensor
    B: Tensor

    def __init__(self, method: VeRA, inputs: int, outputs: int):
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(method.projection_seed)
        for name, shape in (("A", (method.rank, inputs)), ("B", (outputs, method.rank))):
            bound = math.sqrt(6 / shape[1])  # Kaiming: a uniform of variance 2 / fan-in
            drawn = torch.empty(shape)
            if not drawn.is_meta:
                drawn = torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, drawn, persistent=method.save_projection)


class Vectors(Delta):
    """The trained vectors b [out] and d [rank] of one site."""

    def __init__(self, site: Site, method: VeRA):
        super().__init__(site)
        self.dropout = method.dropout
        self.b = nn.Parameter(torch.zeros(site.outputs))
        self.d = nn.Parameter(torch.full((method.rank,), method.start))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        inside = F.dropout(x, self.dropout, self.training) if self.dropout else x
        down, up = self._pair()
        return call(x) + linear(linear(inside, down) * self.d.to(x.dtype), up) * self.b.to(x.dtype)

    def delta(self, weight: Tensor) -> Tensor:
        down, up = self._pair()
        return (self.b[:, None] * up * self.d) @ down

    def _pair(self) -> tuple[Tensor, Tensor]:
        return self.shared.A[:, : self.site.inputs], self.shared.B[: self.site.outputs]
