"""Prefix tuning learns a prefix of keys and values through an MLP (Li and Liang 2021, arXiv:2101.00190)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, cast

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.layers.prefix import Prefix
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.methods.p_tuning_v2 import PTuningV2
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(PTuningV2, name="prefix-tuning"):
    """Attention sees [P_k; K] and [P_v; V] in every layer, and in training P = W2 tanh(W1 E + b1) + b2.

    E [length, width], W1 [projection, width] and b1 are shared by all layers; the rows of W2 [2 L groups size,
    projection] and b2 that make one layer's keys and values belong to that layer, which is the published MLP taken
    apart. E is drawn from N(0, 1), the maps start as torch's linear layers. After training only the prefix is kept
    (`projection: null`): 2 L length groups size numbers. Positions are those of `p-tuning-v2`, or with
    `shift` those of the official code and of Hugging Face peft.
    """

    paper: ClassVar[str] = "Li and Liang 2021, arXiv:2101.00190"
    summary: ClassVar[str] = (
        "Learns keys and values that stand in front of those of the text in every layer, through an MLP that makes "
        "training stable. The MLP is dropped after training and the prefix alone is saved."
    )
    default_learning_rate: ClassVar[float] = 5.6e-3
    rate_falls_with_width: ClassVar[bool] = True

    length: Annotated[int, Ge(1)] = 10
    """Number of prefix positions; the paper uses 10 for table-to-text and 200 for summarisation."""
    projection: Annotated[int, Ge(1)] | None = 512
    """Width inside the MLP; null trains the prefix itself."""

    def share(self, layout: Layout) -> nn.Module | None:
        return None if self.projection is None else Inner(self.length, layout.width, self.projection)

    def build(self, site: Site) -> Adapter:
        return ProjectedPrefix(site, self)

    @property
    def finished(self) -> Method:
        return replace(self, projection=None)

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        if self.projection is None:
            return
        for adapter in adapters.values():
            cast(ProjectedPrefix, adapter).collapse()
        for adapter in adapters.values():
            cast(Inner, adapter.shared).clear()


class Inner(nn.Module):
    """What all layers share: the inner states tanh(W1 E + b1) [length, projection]."""

    undecayed: ClassVar[tuple[str, ...]] = ("E",)

    def __init__(self, length: int, width: int, projection: int):
        super().__init__()
        self.E: nn.Parameter | None = nn.Parameter(torch.randn(length, width))
        self.hidden: nn.Linear | None = nn.Linear(width, projection)

    def forward(self) -> Tensor:
        assert self.hidden is not None
        return torch.tanh(self.hidden(self.E))

    def clear(self) -> None:
        """Drop the parameters, which the collapsed prefixes no longer need."""
        self.E = self.hidden = None


class ProjectedPrefix(Prefix):
    """The keys and values of one layer as a linear map of the shared inner states; plain ones without an MLP."""

    def __init__(self, site: Site, method: PrefixTuning):
        super().__init__(site, method.length, method.deviation, method.shift)
        self.outer: nn.Linear | None = None
        if method.projection is not None:
            self.K = self.V = None
            assert site.heads is not None
            self.outer = nn.Linear(method.projection, site.heads.keys + site.heads.values)

    def prefix(self) -> tuple[Tensor, Tensor]:
        if self.outer is None:
            return super().prefix()
        # The MLP is small beside the model and stays in fp32.
        with torch.autocast(self.outer.weight.device.type, enabled=False):
            heads = self.site.heads
            assert heads is not None
            keys, values = self.outer(self.shared()).split([heads.keys, heads.values], dim=1)
        return keys, values

    def collapse(self) -> None:
        """Put the keys and values themselves in the place of the map."""
        keys, values = self.prefix()
        self.outer = None
        self.K, self.V = nn.Parameter(keys.detach().clone()), nn.Parameter(values.detach().clone())
