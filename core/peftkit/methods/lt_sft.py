"""LT-SFT trains everything once to find which weights change most, then these from the start (Ansell et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from peftkit.hooks import Phase
from peftkit.layers.sparse import MaskedDelta, dense_ones, entries, keep_largest
from peftkit.layout import Layout, Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class LTSFT(Targeted, name="lt-sft"):
    """W + w with w [out, in]: a first phase trains all of it, a second one the largest share `density`, from zero.

    Between them the optimizer is begun anew, and so is the schedule. The entries are chosen over all sites together;
    they alone are saved. `l1` times the mean of |w| is added to the loss in both phases. The first phase holds the
    adapted weights three times more.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "selection"
    paper: ClassVar[str] = "Ansell et al. 2021, arXiv:2110.07560"
    summary: ClassVar[str] = (
        "Trains all weights first, keeps those that changed most, and trains these again from the start. Changes of "
        "several tasks can be added up."
    )
    default_learning_rate: ClassVar[float] = 0.1
    size: ClassVar[str | None] = "density"

    density: Annotated[float, Gt(0), Lt(0.5)] = 0.005
    """Share of the adapted weights that is changed in the end."""
    first: Annotated[float, Gt(0), Lt(1)] = 0.5
    """Share of the steps in which all weights are trained."""
    l1: Annotated[float, Ge(0)] = 0.0
    """Weight of the mean absolute change in the loss."""
    targets: Targets = "linear"

    def build(self, site: Site) -> Adapter:
        return MaskedDelta(site)

    def saved(self, layout: Layout) -> int:
        """Return twice the number of kept entries: each has a position and a change."""
        return 2 * sum(entries(site, self.density) for site in self.sites(layout))

    def phase(self, step: int, steps: int) -> Phase:
        middle = max(1, min(steps - 1, round(self.first * steps)))
        return Phase(0, middle) if step < middle else Phase(middle, steps)

    def penalty(self, adapters: Mapping[str, Adapter]) -> Tensor | None:
        dense = dense_ones(adapters)
        if not self.l1 or not dense:
            return None
        return self.l1 * torch.stack([adapter.change().abs().mean() for adapter in dense.values()]).mean()

    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        if step + 1 == self.phase(step, steps).end < steps and (dense := dense_ones(adapters)):
            self.choose(dense, rewinds=True)

    @torch.no_grad()
    def choose(self, adapters: Mapping[str, MaskedDelta], rewinds: bool) -> None:
        """Keep the share `density` that changed most, from zero where it `rewinds`."""
        keep_largest(adapters, {key: adapter.change() for key, adapter in adapters.items()}, self.density)
        for adapter in adapters.values() if rewinds else ():
            adapter.w.zero_()

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        dense = dense_ones(adapters)
        if not all(bool(adapter.fixed) for adapter in dense.values()):
            # The run ended within its first phase: what it found is kept as it is.
            self.choose(dense, rewinds=False)
        for adapter in dense.values():
            adapter.sparsify()
