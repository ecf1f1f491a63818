"""MoSLoRA puts a trainable mixer between the two matrices of LoRA (Wu et al. 2024, arXiv:2406.11909)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from peftkit.layers.low_rank import LowRank
from peftkit.layout import Site
from peftkit.methods.lora import LoRA
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class MoSLoRA(LoRA, name="moslora"):
    """W + s B M A with A [rank, in], M [rank, rank], B [out, rank]; B is zero at the start, which is thus the base.

    M starts from the Kaiming uniform distribution (the official code's default) or orthogonal, never zero: with B it
    would be a point without gradients. Hugging Face peft has no M: there the pair is (A, B M).
    """

    paper: ClassVar[str] = "Wu et al. 2024, arXiv:2406.11909"
    summary: ClassVar[str] = (
        "LoRA with a small trainable matrix that mixes its subspaces. Costs rank squared more parameters a layer and "
        "merges as LoRA does."
    )
    default_learning_rate: ClassVar[float] = 0.032
    plain_pair: ClassVar[bool] = False

    mixer: Literal["kaiming", "orthogonal"] = "kaiming"
    """How M starts."""

    def build(self, site: Site) -> Adapter:
        return Mixed(site, self)


class Mixed(LowRank):
    """A low-rank pair with a mixer M [rank, rank] in between."""

    factors: tuple[str, str] | None = None

    def __init__(self, site: Site, method: MoSLoRA):
        super().__init__(site, method)
        rank = method.rank_at(site)
        self.M = nn.Parameter(torch.empty(rank, rank))
        if method.mixer == "orthogonal":
            nn.init.orthogonal_(self.M)
        else:
            nn.init.kaiming_uniform_(self.M, a=math.sqrt(5))

    def matrices(self) -> tuple[Tensor, Tensor, float]:
        return self.A, self.B @ self.M, self.scale
