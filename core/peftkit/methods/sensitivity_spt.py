"""SPT gives sensitive matrices a low-rank pair and trains single weights elsewhere (He et al. 2023)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from peftkit.layers.probing import Probed, examples, fisher
from peftkit.layers.sparse import entries, largest
from peftkit.layout import Layout, Site
from peftkit.method import Ranked, Targets
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import linear


@dataclass(frozen=True, kw_only=True)
class SensitivitySPT(Ranked, name="sensitivity-spt"):
    """W + B A where many weights of W are sensitive, and a sparse change at the sensitive ones elsewhere.

    Sensitive are the share `density` of all weights with the largest sum of squared gradients over the examples, what
    a step of one size on each lowers the loss by. A matrix with at least a fifth as many of them as a pair of this
    rank has numbers gets the pair, B zero at the start. The paper also trains whole vectors; here linear maps alone.
    The log tells what became of how many.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "selection"
    paper: ClassVar[str] = "He et al. 2023, arXiv:2303.08566"
    summary: ClassVar[str] = (
        "Measures which weights matter for the data. Matrices that are full of them get a low-rank pair, and the "
        "others are trained one by one."
    )
    default_learning_rate: ClassVar[float] = 0.056

    density: Annotated[float, Gt(0), Lt(0.5)] = 0.005
    """Share of the adapted weights that is sensitive."""
    alpha: Annotated[float, Gt(0)] = 16.0
    """Scale of pairs: alpha / rank."""
    samples: Annotated[int, Ge(1)] = 256
    """Most examples on which sensitivity is measured."""
    targets: Targets = "linear"

    def build(self, site: Site) -> Adapter:
        return Allocated(site, entries(site, self.density), self.alpha / self.rank)

    def saved(self, layout: Layout) -> int:
        """Return what is saved at most: every matrix has a pair, or all positions and changes."""
        sizes = [(self.rank_at(s) * (s.inputs + s.outputs), entries(s, self.density)) for s in self.sites(layout)]
        return sum(pair for pair, _ in sizes) + 2 * sum(count for _, count in sizes)

    def prepare(self, model: nn.Module, adapters: Mapping[str, Adapter], batches: Iterable[Any]) -> None:
        allocated = cast(Mapping[str, Allocated], adapters)
        scores = fisher(model, allocated, examples(batches, self.samples))
        if scores is None:
            return
        paired = 0
        for key, mask in largest(scores, sum(len(a.values) for a in allocated.values())).items():
            adapter, rank = allocated[key], self.rank_at(allocated[key].site)
            if 5 * int(mask.sum()) >= rank * sum(mask.shape):
                adapter.become_pair(rank)
                paired += 1
            else:
                adapter.choose(mask)
        logging.getLogger("peftkit").info("%s: %d of %d matrices have a pair", self.name, paired, len(allocated))


class Allocated(Probed):
    """A sparse change, or a pair A [rank, in], B [out, rank] in its place."""

    def __init__(self, site: Site, count: int, scale: float):
        super().__init__(site, count)
        self.scale, self.is_pair = scale, False

    def become_pair(self, rank: int) -> None:
        """Have a pair that starts as the base."""
        device = self.values.device
        self.A = nn.Parameter(torch.empty(rank, self.site.inputs, device=device))
        self.B = nn.Parameter(torch.zeros(self.site.outputs, rank, device=device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.is_pair = True
        for key in ("values", "indices"):
            setattr(self, key, None)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        if not self.is_pair:
            return super().forward(call, x)
        return call(x) + linear(linear(x, self.A), self.B) * self.scale

    def delta(self, weight: Tensor) -> Tensor:
        return self.B @ self.A * self.scale if self.is_pair else super().delta(weight)

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        down = tensors.get("A")
        if down is not None and down.ndim == 2 and not self.is_pair:
            self.become_pair(len(down))
        if not self.is_pair:
            super().fit(tensors)
