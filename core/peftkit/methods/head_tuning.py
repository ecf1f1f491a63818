"""Tuning of the output head alone, the control arm of the selective methods (Peters et al. 2019, arXiv:1903.05987)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta, linear


@dataclass(frozen=True, kw_only=True)
class HeadTuning(Method, name="head-tuning"):
    """y = (W + D) x + b + c with D [vocabulary, width] and, where the head has a bias, c [vocabulary]; both start at 0.

    The change is kept beside the head, not in it: a head that shares its weight with the input embedding leaves the
    embedding as it is, and is given a weight of its own when the change is merged.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "selection"
    paper: ClassVar[str] = "Peters et al. 2019, arXiv:1903.05987"
    summary: ClassVar[str] = (
        "Trains the output head on the frozen features of the model. No gradient runs through the layers below."
    )
    default_learning_rate: ClassVar[float] = 0.018

    def sites(self, layout: Layout) -> list[Site]:
        return layout.resolve("head")

    def build(self, site: Site) -> Adapter:
        return FullDelta(site)


class FullDelta(Delta):
    """A dense change D [out, in] in fp32 of one linear and its bias."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.D = nn.Parameter(torch.zeros(site.outputs, site.inputs))
        self.c = nn.Parameter(torch.zeros(site.outputs)) if _bias(site) is not None else None

    def forward(self, call: Call, x: Tensor) -> Tensor:
        return call(x) + linear(x, self.D, self.c)

    def delta(self, weight: Tensor) -> Tensor:
        return self.D

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.D, bias if bias is None or self.c is None else bias + self.c


def _bias(site: Site) -> Any:
    return getattr(site.module, "bias", None)
