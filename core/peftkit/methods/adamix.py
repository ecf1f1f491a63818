"""AdaMix trains copies of each adapter, picked by chance, and keeps their mean (Wang et al. 2022, arXiv:2205.12410)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

from annotated_types import Ge
from torch import nn

from peftkit.layers.draws import Draws
from peftkit.layers.mixture import Mixture
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.methods.wrapping import Wrapping
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class AdaMix(Wrapping, name="adamix"):
    """Of the copies of a matrix and of the vectors behind it each pass takes one, for each place by itself.

    Two passes over each micro-batch take other copies; the loss is that of the first and `consistency` times
    (KL(p, q) + KL(q, p)) / 2 of what they predict. Evaluation and the saved adapter have the means of the copies'
    tensors, as one adapter of the method `of`: not the mean of what the copies compute. Copies differ at the start as
    far as an adapter's start is drawn. One copy is that method itself. As in the official code's runs all copies share
    the project-up, which is zero at the start; with `shared: none` a copy learns once its partner has moved.
    """

    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Wang et al. 2022, arXiv:2205.12410"
    summary: ClassVar[str] = (
        "Trains several copies of each adapter, of which every pass takes parts by chance, and keeps their mean. "
        "A second pass pulls what different copies predict together."
    )
    default_learning_rate: ClassVar[float] = 0.0075

    copies: Annotated[int, Ge(1)] = 4
    """Copies of each adapter in training."""
    consistency: Annotated[float, Ge(0)] = 1.0
    """Weight of the divergence between two passes; 0 leaves the second pass out."""
    shared: Literal["none", "down", "up"] = "up"
    """What all copies share: the first matrix of an adapter, with the vectors behind it, the last one, or nothing."""

    @property
    def finished(self) -> Method:
        return self.inner

    def share(self, layout: Layout) -> nn.Module | None:
        return Draws() if self.copies > 1 else None

    def build(self, site: Site) -> Adapter:
        adapters = [self.inner.build(site) for _ in range(self.copies)]
        return Mixture(adapters, self.shared, _pick) if self.copies > 1 else adapters[0]

    def agreement(self) -> float:
        return self.consistency if self.copies > 1 else 0.0

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        for adapter in adapters.values() if self.copies > 1 else ():
            cast(Mixture, adapter).average()


def _pick(mixture: Mixture, block: int) -> int:
    context = mixture.context
    return cast(Draws, mixture.shared).below(mixture.count, context.step, context.view, mixture.site.id, block)
