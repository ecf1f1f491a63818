"""PaFi trains the smallest weights, the same ones for every task (Liao et al. 2023, arXiv:2305.16742)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import torch
from annotated_types import Gt, Lt
from torch import nn

from peftkit.layers.sparse import SparseDelta, entries, largest
from peftkit.layout import Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class PaFi(Targeted, name="pafi"):
    """W + a sparse change whose values start at zero, at the share `density` of weights smallest by absolute value.

    They are chosen over all sites together, without data, before the first step; of equal ones in the order of sites
    and rows. On a packed base the weights are those that the codes stand for.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "selection"
    paper: ClassVar[str] = "Liao et al. 2023, arXiv:2305.16742"
    summary: ClassVar[str] = (
        "Trains the few weights that are nearest to zero, chosen without any data. All tasks of a model have the same "
        "positions."
    )
    default_learning_rate: ClassVar[float] = 0.18
    size: ClassVar[str | None] = "density"

    density: Annotated[float, Gt(0), Lt(0.5)] = 0.005
    """Share of the adapted weights that is trained."""
    targets: Targets = "linear"

    def build(self, site: Site) -> Adapter:
        return SparseDelta(site, entries(site, self.density))

    def prepare(self, model: nn.Module, adapters: Mapping[str, Adapter], batches: Iterable[Any]) -> None:
        sparse = cast(Mapping[str, SparseDelta], adapters)
        count = sum(len(adapter.values) for adapter in sparse.values())
        with torch.no_grad():
            sizes = {key: -adapter.weight().float().abs() for key, adapter in sparse.items()}
            for key, mask in largest(sizes, count).items():
                sparse[key].choose(mask)
