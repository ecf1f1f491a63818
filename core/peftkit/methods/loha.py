"""LoHa adds the product, element by element, of two low-rank matrices (Hyeon-Woo et al. 2021, arXiv:2108.06098)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn

from peftkit.layout import Site
from peftkit.method import Ranked
from peftkit.ports.adapter import Adapter
from peftkit.ports.linear import Delta


@dataclass(frozen=True, kw_only=True)
class LoHa(Ranked, name="loha"):
    """W + s (B1 A1) * (B2 A2) with A [rank, in], B [out, rank], s = alpha / rank; its rank is up to rank squared.

    A2 is zero at the start, which is thus the base, and the others come from the Kaiming uniform distribution, as in
    Hugging Face peft; LyCORIS draws them from a normal one. FedPara, the paper of the form, trains such matrices in the
    place of a weight; as a change beside it the form comes from LyCORIS (Yeh et al. 2023, arXiv:2309.14859).
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Hyeon-Woo et al. 2021, arXiv:2108.06098"
    summary: ClassVar[str] = (
        "Adds the product, element by element, of two low-rank matrices. Its rank is the square of theirs, for twice "
        "the numbers of LoRA."
    )
    default_learning_rate: ClassVar[float] = 0.056
    by_weight: ClassVar[bool] = False

    alpha: Annotated[float, Gt(0)] = 8.0
    """Scale: the change is multiplied by alpha / rank."""

    def build(self, site: Site) -> Adapter:
        return Hadamard(site, self.rank_at(site), self.alpha / self.rank)


class Hadamard(Delta):
    """Two pairs A [rank, in], B [out, rank] whose products are multiplied element by element."""

    def __init__(self, site: Site, rank: int, scale: float):
        super().__init__(site)
        self.scale = scale
        self.B1, self.B2 = (nn.Parameter(torch.empty(site.outputs, rank)) for _ in range(2))
        self.A1, self.A2 = (nn.Parameter(torch.empty(rank, site.inputs)) for _ in range(2))
        for drawn in (self.B1, self.A1, self.B2):
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
        nn.init.zeros_(self.A2)

    def delta(self, weight: Tensor) -> Tensor:
        return (self.B1 @ self.A1) * (self.B2 @ self.A2) * self.scale
