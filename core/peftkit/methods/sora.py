"""SoRA learns the rank of each low-rank pair by gates that a threshold closes (Ding et al. 2023, arXiv:2311.11696)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.layers.low_rank import LowRank
from peftkit.layout import Site
from peftkit.methods.lora import LoRA
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class SoRA(LoRA, name="sora"):
    """W + s B diag(g) A with A [rank, in], B [out, rank], g [rank]; B is zero at the start, g standard normal.

    After each step g moves towards zero by `threshold` and stays there once it arrives, the proximal step of
    threshold * |g|: g <- sign(g) max(|g| - threshold, 0). The paper multiplies the threshold by the learning rate; the
    official code takes it as it is, and so does this. Zero gates are cut out of the saved adapter, which changes
    nothing of what it computes.
    """

    paper: ClassVar[str] = "Ding et al. 2023, arXiv:2311.11696"
    summary: ClassVar[str] = (
        "LoRA with a gate on each rank. A proximal step after each update closes gates, and closed ones are cut off."
    )
    default_learning_rate: ClassVar[float] = 0.018
    by_weight: ClassVar[bool] = False
    plain_pair: ClassVar[bool] = False

    threshold: Annotated[float, Ge(0)] = 5e-4
    """How far each step moves a gate towards zero."""

    def build(self, site: Site) -> Adapter:
        return Gated(site, self)

    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        with torch.no_grad():
            for adapter in cast(Mapping[str, Gated], adapters).values():
                adapter.g.copy_(F.softshrink(adapter.g, self.threshold))

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        for adapter in cast(Mapping[str, Gated], adapters).values():
            adapter.keep(adapter.g != 0)


class Gated(LowRank):
    """A pair with a gate g [rank] between its matrices."""

    factors: tuple[str, str] | None = None

    def __init__(self, site: Site, method: SoRA):
        super().__init__(site, method)
        self.g = nn.Parameter(torch.randn(self.A.shape[0]))

    def matrices(self) -> tuple[Tensor, Tensor, float]:
        return self.A, self.B * self.g, self.scale

    def keep(self, chosen: Tensor) -> None:
        """Cut the pair to the ranks that the mask [rank] chooses."""
        self.A.data, self.B.data, self.g.data = self.A.data[chosen], self.B.data[:, chosen], self.g.data[chosen]

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        gates = tensors.get("g")
        if gates is not None and gates.ndim == 1 and len(gates) != len(self.g):
            rank = len(gates)
            self.A.data = self.A.data.new_zeros(rank, self.A.shape[1])
            self.B.data = self.B.data.new_zeros(self.B.shape[0], rank)
            self.g.data = self.g.data.new_zeros(rank)
