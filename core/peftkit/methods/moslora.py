"""MoSLoRA puts a trainable mixer between the two matrices of LoRA (Wu et al. 2024, arXiv:2406.11909)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.kernels.low_rank import add_pair
from peftkit.layout import Layout, Site
from peftkit.method import Learns, Method
from peftkit.methods.lora import LoRA, LowRank
from peftkit.ports.adapter import Adapter, Call


@dataclass(frozen=True, kw_only=True)
class MoSLoRA(LoRA, name="moslora"):
    """W + s B M A with A [rank, in], M [rank, rank], B [out, rank]; B is zero at the start, which is thus the base.

    M starts from the Kaiming uniform distribution (the official code's default) or orthogonal, never zero: with B it
    would be a point without gradients. Hugging Face peft has no M: there the pair is (M A, B).
    """

    paper: ClassVar[str] = "Wu et al. 2024, arXiv:2406.11909"
    summary: ClassVar[str] = (
        "LoRA with a small trainable matrix that mixes its subspaces. Costs rank squared more parameters a layer and "
        "merges as LoRA does."
    )
    default_learning_rate: ClassVar[float] = 0.032
    plain_pair: ClassVar[bool] = False
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = ({"mixer": "orthogonal", "targets": "linear", "rank": 4},)
    learns: ClassVar[Learns] = Learns(loss=3.0, steps=60, learning_rate=1.5e-2)

    mixer: Literal["kaiming", "orthogonal"] = "kaiming"
    """How M starts."""

    def build(self, site: Site) -> Adapter:
        return Mixed(site, self)

    def count(self, layout: Layout) -> int:
        return super().count(layout) + sum(self.rank_at(site) ** 2 for site in self.sites(layout))

    @classmethod
    def from_hf_peft(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout
    ) -> tuple[Method, dict[str, Tensor]]:
        method, state = super().from_hf_peft(config, tensors, layout)
        mixers = {f"{key[:-1]}M": torch.eye(down.shape[0]) for key, down in state.items() if key.endswith("/A")}
        return method, {**state, **mixers}


class Mixed(LowRank):
    """A low-rank pair with a mixer M [rank, rank] in between."""

    def __init__(self, site: Site, method: MoSLoRA):
        super().__init__(site, method)
        rank = method.rank_at(site)
        self.M = nn.Parameter(torch.empty(rank, rank))
        if method.mixer == "orthogonal":
            nn.init.orthogonal_(self.M)
        else:
            nn.init.kaiming_uniform_(self.M, a=math.sqrt(5))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        inside = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return add_pair(call, x, inside, self.A, self.B @ self.M, self.scale)

    def delta(self, weight: Tensor) -> Tensor:
        return (self.B @ self.M @ self.A) * self.scale

    def pair(self) -> tuple[Tensor, Tensor]:
        return (self.M @ self.A).detach(), self.B.detach() * self.scale
