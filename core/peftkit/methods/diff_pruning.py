"""Diff pruning learns which few weights to change, by gates with an L0 penalty (Guo et al. 2020, arXiv:2012.07463)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from peftkit.layers.sparse import GatedDelta, dense_ones, entries, keep_largest
from peftkit.layout import Layout, Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class DiffPruning(Targeted, name="diff-pruning"):
    """W + z * w with w [out, in] zero at the start and hard-concrete gates z [out, in] in [0, 1].

    z = clip(3 sigmoid(logit(u) + a) - 1.5, 0, 1), u uniform in training and 1/2 outside it, a = 5 at the start. The
    penalty is sparsity * sum P(z > 0) = sparsity * sum sigmoid(a). For the last share `final` of the steps exactly the
    share `density` of all entries with the largest |z w| is kept and w alone is trained there; they alone are saved.
    With `structured` each weight has one further gate that multiplies its z. Training holds the adapted weights three
    times more.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "selection"
    paper: ClassVar[str] = "Guo et al. 2020, arXiv:2012.07463"
    summary: ClassVar[str] = (
        "Trains a change of every weight with a gate on each, in the memory of full fine-tuning. The largest "
        "few changes are kept, so that the saved adapter is small."
    )
    default_learning_rate: ClassVar[float] = 0.018
    size: ClassVar[str | None] = "density"

    density: Annotated[float, Gt(0), Lt(0.5)] = 0.005
    """Share of the adapted weights that is changed in the end."""
    sparsity: Annotated[float, Ge(0)] = 1.25e-7
    """Weight of the penalty on the expected number of open gates."""
    structured: bool = False
    """Whether each weight has one more gate of its own."""
    gate_learning_rate: Annotated[float, Gt(0)] = 0.1
    """Learning rate of a."""
    final: Annotated[float, Ge(0), Lt(1)] = 0.3
    """Share of the steps, at the end, in which the kept entries are fixed."""
    targets: Targets = "linear"

    def build(self, site: Site) -> Adapter:
        return GatedDelta(site, self.structured)

    def saved(self, layout: Layout) -> int:
        """Return twice the number of kept entries: each has a position and a change."""
        return 2 * sum(entries(site, self.density) for site in self.sites(layout))

    def groups(
        self, layout: Layout, parameters: Sequence[tuple[str, nn.Parameter]], learning_rate: float
    ) -> list[dict[str, Any]]:
        gates = [(key, p) for key, p in parameters if key.endswith(("/a", "/group"))]
        changes = [(key, p) for key, p in parameters if not key.endswith(("/a", "/group"))]
        return [{"params": changes, "lr": learning_rate}, {"params": gates, "lr": self.gate_learning_rate}]

    def penalty(self, adapters: Mapping[str, Adapter]) -> Tensor | None:
        terms = [adapter.expected() for adapter in dense_ones(adapters).values()]
        return self.sparsity * torch.stack(terms).sum() if terms else None

    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        if step + 1 == steps - int(self.final * steps) and (gated := dense_ones(adapters)):
            self.project(gated)

    def project(self, adapters: Mapping[str, GatedDelta]) -> None:
        """Keep exactly the share `density` of all entries with the largest |z w|, and fix them."""
        with torch.no_grad():
            for adapter in adapters.values():
                # What is decided is decided without drawing: two seeds of the gates would keep other entries.
                adapter.train(False)
            changes = {key: adapter.change() for key, adapter in adapters.items()}
            keep_largest(adapters, changes, self.density)
            for adapter in adapters.values():
                adapter.train(adapter.site.module.training)

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        gated = dense_ones(adapters)
        if not all(bool(adapter.fixed) for adapter in gated.values()):
            self.project(gated)
        for adapter in gated.values():
            adapter.sparsify()
