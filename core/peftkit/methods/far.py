"""FAR trains the neurons of feed-forward parts that move most in a short priming (Vucetic et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
from annotated_types import Gt, Le, Lt

from peftkit.errors import PeftkitError
from peftkit.hooks import Phase
from peftkit.layers.neurons import Neurons
from peftkit.layout import Layout, Site, Standing, parse_layers
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter

NEURONS = ("gate", "up", "down")
"""The roles of maps that have neurons: rows of gate and up, columns of down."""


@dataclass(frozen=True, kw_only=True)
class FAR(Targeted, name="far"):
    """W + w at the neurons of the feed-forward part that learn: rows of gate and up, columns of down.

    A first phase trains all of w; in each layer the share `density` of neurons with the largest sum of |w| over their
    rows and columns stays, from zero, with a new optimizer and schedule. What is saved are the neurons' numbers and a
    contiguous block of their rows or columns, which is all that is multiplied then. The official code reorders the
    neurons of the model for the same end; while it trains, w is held whole here.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "selection"
    paper: ClassVar[str] = "Vucetic et al. 2022, arXiv:2205.01541"
    summary: ClassVar[str] = (
        "Trains the neurons of feed-forward parts that moved most in a first phase, from where they were. They stand "
        "in one block, without indices for single weights."
    )
    default_learning_rate: ClassVar[float] = 0.018

    density: Annotated[float, Gt(0), Le(1)] = 0.05
    """Share of each layer's neurons that learns."""
    first: Annotated[float, Gt(0), Lt(1)] = 0.2
    """Share of the steps in which all neurons are trained."""
    targets: Targets = NEURONS

    def standing(self, layout: Layout) -> Standing:
        """Return the sites of the targets, or of those of the default that the model has: nothing else has neurons."""
        there = {site.role for site in layout.linears} & set(NEURONS)
        default = self.targets == type(self).targets
        targets = tuple(role for role in NEURONS if role in there) if default else self.targets
        if default and not targets:
            raise PeftkitError(
                f"{self.name}: this {layout.kind} model has no feed-forward part of gate, up and down maps of its own, "
                "whose neurons could learn. Use fishmask, which chooses single weights, or lora."
            )
        sites = layout.resolve(targets, parse_layers(self.layers), self.exclude)
        other = next((site for site in sites if site.role not in NEURONS), None)
        if other is not None:
            raise PeftkitError(
                f"{self.name}: {other.id} is no map of a feed-forward part, so that it has no neurons: targets are "
                f"{', '.join(NEURONS)}, or some of them."
            )
        return Standing(sites)

    def build(self, site: Site) -> Adapter:
        return Neurons(site)

    def phase(self, step: int, steps: int) -> Phase:
        middle = max(1, min(steps - 1, round(self.first * steps)))
        return Phase(0, middle) if step < middle else Phase(middle, steps)

    def count(self, neurons: int) -> int:
        """Return how many of a layer's neurons learn."""
        return max(1, round(self.density * neurons))

    def saved(self, layout: Layout) -> int:
        """Return the size of the blocks and of the neurons' numbers."""
        sizes = [(s.inputs, s.outputs) if s.role == "down" else (s.outputs, s.inputs) for s in self.sites(layout)]
        return sum(self.count(neurons) * (width + 1) for neurons, width in sizes)

    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        if step + 1 == self.phase(step, steps).end < steps and (primed := _primed(adapters)):
            self.choose(primed, rewinds=True)

    @torch.no_grad()
    def choose(self, adapters: Mapping[str, Neurons], rewinds: bool) -> None:
        """Have the neurons of each layer that moved most learn, from zero where it `rewinds`."""
        layers: dict[tuple[int | None, int], list[Neurons]] = {}
        for adapter in adapters.values():
            layers.setdefault((adapter.site.layer, len(adapter.learning)), []).append(adapter)
        for (_, neurons), members in layers.items():
            moved = torch.stack([member.moved() for member in members]).sum(0)
            chosen = moved.topk(self.count(neurons)).indices
            for member in members:
                member.learn(chosen, rewinds)

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        primed = _primed(adapters)
        if not all(bool(adapter.chosen) for adapter in primed.values()):
            # The run ended within its first phase: what it found is kept as it is.
            self.choose(primed, rewinds=False)
        for adapter in primed.values():
            adapter.gather()


def _primed(adapters: Mapping[str, Adapter]) -> dict[str, Neurons]:
    """Return the adapters whose neurons are still to be gathered."""
    return {key: each for key, each in cast(Mapping[str, Neurons], adapters).items() if not each.gathered}
