"""DeLoRA bounds how far a low-rank change moves a weight (Bini et al. 2025, arXiv:2503.18225)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from peftkit.layers.low_rank import LowRank
from peftkit.layout import Site
from peftkit.method import Ranked
from peftkit.ports.adapter import Adapter

SMALLEST = 1e-4
"""Below what a norm is not divided by, as in Hugging Face peft: B starts at zero."""


@dataclass(frozen=True, kw_only=True)
class DeLoRA(Ranked, name="delora"):
    """W + (strength / rank) B diag(1 / (|a_i| |b_i|)) A diag(n), n [in] the column norms of W.

    A [rank, in] has rows a_i and B [out, rank] columns b_i; the strength [1] is trained with them and bounds how far
    the change moves W, whatever A and B become. B is zero at the start, which is thus the base, with norms of at least
    1e-4 as in Hugging Face peft; the paper's code subtracts a frozen copy of the start instead.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Bini et al. 2025, arXiv:2503.18225"
    summary: ClassVar[str] = (
        "LoRA whose directions have length one and whose strength is a trained number. It stays stable at high "
        "learning rates and over long training."
    )
    default_learning_rate: ClassVar[float] = 0.01

    strength: Annotated[float, Gt(0)] = 15.0
    """The bound at the start."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an input element of the adapter in training."""

    def scale_at(self, site: Site) -> float:
        """Return the factor before the strength at one site."""
        return 1 / self.rank_at(site)

    def initialise(self, adapter: LowRank) -> None:
        """Draw A from the Kaiming uniform distribution and set B to zero."""
        nn.init.kaiming_uniform_(adapter.A, a=math.sqrt(5))
        nn.init.zeros_(adapter.B)

    def build(self, site: Site) -> Adapter:
        return Bounded(site, self)


class Bounded(LowRank):
    """A pair of unit directions, the strength [1], and the column norms n [in] of the frozen weight."""

    factors: tuple[str, str] | None = None

    def __init__(self, site: Site, method: DeLoRA):
        super().__init__(site, method)
        self.strength = nn.Parameter(torch.full((1,), method.strength))
        self.norms = nn.Buffer(self.weight().detach().float().norm(dim=0), persistent=False)

    def matrices(self) -> tuple[Tensor, Tensor, float]:
        lengths = self.A.norm(dim=1).clamp(min=SMALLEST) * self.B.norm(dim=0).clamp(min=SMALLEST)
        return self.A * self.norms, self.B * (self.strength / lengths), self.scale
