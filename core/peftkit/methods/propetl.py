"""ProPETL cuts the adapters of all layers out of one prototype by masks (Zeng et al. 2023, arXiv:2305.17682)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, cast

from annotated_types import Gt, Le
from torch import nn

from peftkit.layers.masked import Masked, Prototype
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.methods.wrapping import Wrapping
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class ProPETL(Wrapping, name="propetl"):
    """The matrices of a layer's adapter are P o m: a prototype P that layers share, and a mask m of the layer's own.

    m has ones at the share `density` of largest |scores|; scores start from the Kaiming uniform distribution, and their
    gradient is that of m, straight through. P starts as an adapter of `of` does; vectors are P's. Adapters of other
    shapes have another prototype. Saved are P and a bit for each entry of each mask. The paper's masks of tasks, which
    it joins with those of layers, are left out.
    """

    family: ClassVar[str] = "pruning of adapters"
    paper: ClassVar[str] = "Zeng et al. 2023, arXiv:2305.17682"
    summary: ClassVar[str] = (
        "Trains one adapter that all layers share, and for each layer which of its entries count there. What is saved "
        "is one adapter and a bit for each entry and layer."
    )
    default_learning_rate: ClassVar[float] = 0.042

    density: Annotated[float, Gt(0), Le(1)] = 0.5
    """Share of the prototype's entries that counts in a layer."""
    fixed: bool = False
    """Keep the masks of the start as bits instead of training them; what is saved after training has them so."""

    @property
    def finished(self) -> Method:
        return replace(self, fixed=True)

    def share(self, layout: Layout) -> nn.Module:
        return Prototype(self.inner.build(site) for site in self.sites(layout))

    def build(self, site: Site) -> Adapter:
        return Masked(self.inner.build(site), self.density, self.fixed)

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        for adapter in cast(Mapping[str, Masked], adapters).values() if not self.fixed else ():
            adapter.fix()
