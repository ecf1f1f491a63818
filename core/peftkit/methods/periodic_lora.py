"""PLoRA merges a low-rank pair every period and begins a new one (Meng et al. 2024, arXiv:2402.16141)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from peftkit.hooks import Phase
from peftkit.layers.low_rank import LowRank
from peftkit.layers.places import generator
from peftkit.layout import Layout, Site
from peftkit.methods.lora import LoRA
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class PeriodicLoRA(LoRA, name="periodic-lora"):
    """W + U D + s B A: at the end of each period but the last s B A goes into U D, A is drawn anew and B is zero.

    U [out, k] and D [k, in] are frozen and grow by the rank each time, so that packed weights stay as they are; from
    the smaller side of W on they are one whole matrix and an identity. The optimizer's moments are dropped and the
    schedule begins anew, as in PLoRA. ReLoRA (Lialin et al. 2023, arXiv:2307.05695) drops the share `forget` of the
    moments, the smallest first: 0.9 or 0.99. The function does not change where a period ends.
    """

    paper: ClassVar[str] = "Meng et al. 2024, arXiv:2402.16141"
    summary: ClassVar[str] = (
        "LoRA that is merged several times in a run, each time with a new pair. The rank of the whole change grows, in "
        "the memory of a small pair's training."
    )
    default_learning_rate: ClassVar[float] = 0.018
    by_weight: ClassVar[bool] = False
    plain_pair: ClassVar[bool] = False

    periods: Annotated[int, Ge(1)] = 4
    """Periods of equal length in a run."""
    forget: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of the optimizer's moments that is dropped between periods."""

    def build(self, site: Site) -> Adapter:
        return Growing(site, self)

    def saved(self, layout: Layout) -> int:
        """Return what is saved at most: the pair, and all that earlier ones can add up to."""
        return sum(
            (self.rank_at(site) + min(site.inputs, site.outputs)) * (site.inputs + site.outputs)
            for site in self.sites(layout)
        )

    def phase(self, step: int, steps: int) -> Phase:
        ends = [steps * (number + 1) // self.periods for number in range(self.periods)]
        place = next(number for number, end in enumerate(ends) if step < end)
        return Phase(ends[place - 1] if place else 0, ends[place], self.forget)

    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        if step + 1 == self.phase(step, steps).end < steps:
            for key, adapter in cast(Mapping[str, Growing], adapters).items():
                adapter.unload(generator(step, key), self)


class Growing(LowRank):
    """A pair, and the sum U D of those before it, which is not there at first."""

    U: Tensor | None
    D: Tensor | None

    def __init__(self, site: Site, method: PeriodicLoRA):
        super().__init__(site, method)
        self.register_buffer("U", None)
        self.register_buffer("D", None)

    def matrices(self) -> tuple[Tensor, Tensor, float]:
        if self.U is None or self.D is None:
            return self.A, self.B, self.scale
        return torch.cat([self.A, self.D]), torch.cat([self.B, self.U / self.scale], 1), self.scale

    @torch.no_grad()
    def unload(self, drawn: torch.Generator, method: PeriodicLoRA) -> None:
        """Add s B A to U D, draw A anew and set B to zero."""
        down, up, scale = self.matrices()
        self.D, self.U = down.clone(), up * scale
        smaller = min(self.site.inputs, self.site.outputs)
        if len(self.D) > smaller:
            whole, one = self.U @ self.D, torch.eye(smaller, device=self.U.device)
            self.U, self.D = (one, whole) if self.site.outputs == smaller else (whole, one)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(drawn.initial_seed())
            method.initialise(self)

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        rows = tensors.get("D")
        if rows is not None and rows.ndim == 2:
            count = len(rows)
            self.U, self.D = self.B.new_zeros(len(self.B), count), self.A.new_zeros(count, self.A.shape[1])
