"""AdapterDrop trains without the adapters of the lowest layers (Rücklé et al. 2020, arXiv:2010.11918)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

from annotated_types import Ge
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.draws import Draws
from peftkit.layers.wrapped import Wrapped
from peftkit.layout import Layout, Site
from peftkit.methods.wrapping import Wrapping
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class AdapterDrop(Wrapping, name="adapterdrop"):
    """Adapters of the layers from n on run, those of the n lowest do not; n is fixed, or drawn for each step.

    With `depth: random` (the paper's robust adapters) n is uniform from 0 to `most` in training, all micro-batches of
    a step alike, and afterwards `drop` says which adapters run: all are saved. With `depth: fixed` (its specialised
    ones) n is `drop`, and the layers below have no adapters.
    """

    family: ClassVar[str] = "pruning of adapters"
    paper: ClassVar[str] = "Rücklé et al. 2020, arXiv:2010.11918"
    summary: ClassVar[str] = (
        "Leaves the adapters of the lowest layers out, as many in each step as are drawn, or always the same. "
        "Afterwards the adapters work with any number of layers left out, for a faster start of the model."
    )
    default_learning_rate: ClassVar[float] = 0.018

    depth: Literal["random", "fixed"] = "random"
    """Whether the number of layers that are left out in training is drawn for each step."""
    drop: Annotated[int, Ge(0)] = 0
    """Lowest layers without adapters; with `depth: random` in evaluation and generation alone."""
    most: Annotated[int, Ge(1)] | None = None
    """Layers that are left out at most with `depth: random`; by default all but one."""

    def sites(self, layout: Layout) -> list[Site]:
        sites, layers = super().sites(layout), len(layout.blocks)
        outside = next((site.id for site in sites if site.layer is None), None)
        if outside is not None:
            raise PeftkitError(f"{self.name}: {outside} lies in no layer: leave it out of targets.")
        for key, value, limit in (("most", self.most or 0, layers - 1), ("drop", self.drop, layers)):
            if value > limit:
                raise PeftkitError(
                    f"{self.name}: {key} is {value}, and the model has {layers} layers: choose at most {limit}."
                )
        if self.depth == "random":
            return sites
        kept = [site for site in sites if cast(int, site.layer) >= self.drop]
        if not kept:
            top = max(cast(int, site.layer) for site in sites)
            raise PeftkitError(f"{self.name}: drop is {self.drop} and leaves no adapter: choose at most {top}.")
        return kept

    def share(self, layout: Layout) -> nn.Module | None:
        return Depths(self.most or len(layout.blocks) - 1) if self.depth == "random" else None

    def build(self, site: Site) -> Adapter:
        plain = self.inner.build(site)
        return Skipped(plain, self.drop) if self.depth == "random" else plain

    def notices(self, layout: Layout) -> list[str]:
        most = self.most or len(layout.blocks) - 1
        drawn = [f"{self.name}: the adapters of the lowest 0 to {most} layers, drawn for each step, are left out"]
        return [*super().notices(layout), *(drawn if self.depth == "random" else [])]


class Depths(Draws):
    """How many of the lowest layers a step leaves out."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most


class Skipped(Wrapped):
    """An adapter that runs where its layer is not among the lowest that are left out."""

    def __init__(self, plain: Adapter, drop: int):
        super().__init__(plain)
        self.drop = drop

    def forward(self, call: Any, *given: Tensor) -> Tensor:  # type: ignore[override]
        depth = self.drop
        if self.training:
            drawn = cast(Depths, self.shared)
            depth = drawn.below(drawn.most + 1, self.context.step)
        return call(*given) if cast(int, self.site.layer) < depth else self.plain(call, *given)
