"""S-BitFit learns which biases to train, as whole vectors (Lawton et al. 2023, arXiv:2305.16597)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import torch
from annotated_types import Gt, Le, Lt
from torch import nn

from peftkit.errors import PeftkitError
from peftkit.hooks import Phase
from peftkit.layers.gated_bias import GatedBias
from peftkit.layout import Layout, Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class SBitFit(Targeted, name="s-bitfit"):
    """W x + b + z v with v [out], zero at the start, and a gate z = sigmoid(a) for each bias vector.

    A first phase trains vectors and gates; then the vectors with the largest gates stay, as many as make up the share
    `density` of the numbers and at least one, begin from zero again and are trained with a new optimizer and
    schedule. They alone are saved. The paper relaxes the choice by a sampled gate; a = 0 at the start.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "selection"
    paper: ClassVar[str] = "Lawton et al. 2023, arXiv:2305.16597"
    summary: ClassVar[str] = (
        "BitFit that learns which bias vectors are worth training, and trains these alone. Fewer numbers than BitFit "
        "for the same score."
    )
    default_learning_rate: ClassVar[float] = 0.018
    rate_searched: ClassVar[bool] = False
    rate_falls_with_width: ClassVar[bool] = False
    by_element: ClassVar[bool] = False
    """Whether each element of a bias has a gate of its own."""

    density: Annotated[float, Gt(0), Le(1)] = 0.5
    """Share of the bias elements that is trained in the end."""
    first: Annotated[float, Gt(0), Lt(1)] = 0.3
    """Share of the steps in which the choice is learnt."""
    gate_learning_rate: Annotated[float, Gt(0)] = 0.1
    """Learning rate of the gates."""
    targets: Targets = "linear"

    def sites(self, layout: Layout) -> list[Site]:
        found = [site for site in super().sites(layout) if getattr(site.module, "bias", None) is not None]
        if not found:
            raise PeftkitError(
                f"{self.name}: this {layout.kind} model has no bias at the targets, so that nothing can be chosen. "
                "Use layernorm-tuning, which trains the vectors that such a model does have, or lora."
            )
        return found

    def build(self, site: Site) -> Adapter:
        return GatedBias(site, self.by_element)

    def saved(self, layout: Layout) -> int:
        """Return twice the number of all elements: each that is kept has a position and a change."""
        return 2 * sum(site.outputs for site in self.sites(layout))

    def phase(self, step: int, steps: int) -> Phase:
        middle = max(1, min(steps - 1, round(self.first * steps)))
        return Phase(0, middle) if step < middle else Phase(middle, steps)

    def groups(
        self, layout: Layout, parameters: Sequence[tuple[str, nn.Parameter]], learning_rate: float
    ) -> list[dict[str, Any]]:
        gates = [(key, p) for key, p in parameters if key.endswith("/a")]
        changes = [(key, p) for key, p in parameters if not key.endswith("/a")]
        return [{"params": changes, "lr": learning_rate}, {"params": gates, "lr": self.gate_learning_rate}]

    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        if step + 1 == self.phase(step, steps).end < steps and (opened := _open(adapters)):
            self.choose(opened, rewinds=True)

    @torch.no_grad()
    def choose(self, adapters: Mapping[str, GatedBias], rewinds: bool) -> None:
        """Keep the vectors or elements with the largest gates, from zero where it `rewinds`."""
        gates = torch.cat([adapter.a for adapter in adapters.values()])
        sizes = torch.cat([torch.full_like(a.a, len(a.v) / len(a.a)) for a in adapters.values()])
        order = gates.argsort(descending=True, stable=True)
        fits = sizes[order].cumsum(0) <= max(self.density * sizes.sum(), sizes[order[0]])
        kept = torch.zeros_like(gates, dtype=torch.bool).index_fill(0, order[fits], True)
        for adapter, mask in zip(adapters.values(), kept.split([len(a.a) for a in adapters.values()]), strict=True):
            adapter.fix(mask, rewinds)

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        opened = _open(adapters)
        if not all(bool(adapter.fixed) for adapter in opened.values()):
            # The run ended within its first phase: what it found is kept as it is.
            self.choose(opened, rewinds=False)
        for adapter in opened.values():
            adapter.cut()


def _open(adapters: Mapping[str, Adapter]) -> dict[str, GatedBias]:
    """Return the adapters that are still to be cut."""
    return {key: each for key, each in cast(Mapping[str, GatedBias], adapters).items() if not each.is_cut}
