"""The S4 design: four groups of layers with methods of their own (Chen et al. 2023, arXiv:2301.01821)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.layout import Layout, Site
from peftkit.method import Method, Targeted
from peftkit.methods.lora import LoRA
from peftkit.methods.prefix_tuning import PrefixTuning
from peftkit.methods.serial_adapter import SerialAdapter
from peftkit.methods.somewhere import somewhere
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import LinearAdapter


@dataclass(frozen=True, kw_only=True)
class S4DesignSpace(Method, name="s4-design-space"):
    """Groups of a spindle, few, more, more, few layers: (A, L), (A, P), (A, P, B), (P, B, L) from the bottom up.

    A is `serial-adapter`, L `lora`, P `prefix-tuning`, with their shapes and starts; B adds b [out], zero at the start,
    to each linear map, as many decoders have no biases to train. Of twelve layers the groups have 2, 4, 4 and 2; of
    fewer than four layers one may stand in several groups. The paper gives each layer as many parameters, which is up
    to the sizes here.
    """

    port: ClassVar[str] = "linear + attention"
    family: ClassVar[str] = "combination"
    paper: ClassVar[str] = "Chen et al. 2023, arXiv:2301.01821"
    summary: ClassVar[str] = (
        "Puts adapters, low-rank pairs, prefixes and biases into four groups of layers. The combinations are those "
        "that a search of its paper found."
    )
    default_learning_rate: ClassVar[float] = 0.018
    mergeable: ClassVar[bool] = False

    bottleneck: Annotated[int, Ge(1)] = 24
    """Inner size of the adapters."""
    rank: Annotated[int, Ge(1)] = 8
    """Inner size of the low-rank pairs."""
    prefix_length: Annotated[int, Ge(1)] = 10
    """Number of prefix positions of attention."""
    projection: Annotated[int, Ge(1)] | None = 512
    """Width inside the MLP that makes the prefix in training; null trains the prefix itself."""

    @property
    def finished(self) -> Method:
        return replace(self, projection=None)

    def parts(self) -> tuple[Method, ...]:
        rate: dict[str, Any] = {"learning_rate": self.learning_rate}
        parts: tuple[tuple[Method, tuple[int, ...]], ...] = (
            (SerialAdapter(bottleneck=self.bottleneck, **rate), (0, 1, 2)),
            (LoRA(rank=self.rank, **rate), (0, 3)),
            (PrefixTuning(length=self.prefix_length, projection=self.projection, **rate), (1, 2, 3)),
            (AddedBiases(**rate), (2, 3)),
        )
        rate_found = self.default_learning_rate
        return tuple(somewhere(part, Groups(groups), self.name, rate_found) for part, groups in parts)


@dataclass(frozen=True)
class Groups:
    """The layers of some of the four groups."""

    chosen: tuple[int, ...]

    def __call__(self, layout: Layout) -> Collection[int]:
        spans = spindle(len(layout.blocks))
        return {layer for group in self.chosen for layer in spans[group]}


def spindle(layers: int) -> list[range]:
    """Share layers out to four groups, about a sixth, a third, a third and a sixth; each has one at least."""
    starts = [min(layers - 1, round(layers * sixths / 6)) for sixths in (0, 1, 3, 5)]
    ends = [*starts[1:], layers]
    return [range(start, max(start + 1, end)) for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True, kw_only=True)
class AddedBiases(Targeted):
    """A bias of its own for each linear map."""

    name: ClassVar[str] = "added-biases"
    targets: str | tuple[str, ...] = "linear"

    def build(self, site: Site) -> Adapter:
        return AddedBias(site)


class AddedBias(LinearAdapter):
    """W x + b with b [out], zero at the start."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.b = nn.Parameter(torch.zeros(site.outputs))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        return y + self.b.to(y.dtype)
