"""Adapters of a frozen stack of experts' weights, which the model multiplies in a way of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.low_rank import PairOptions
from peftkit.layout import Site
from peftkit.ports.adapter import Adapter, Call


class Stacked(Adapter):
    """An adapter of a stack of experts' weights, which says by `merge` what stands in the place of the stack.

    It does while the module of the experts runs, and is exact however the experts are computed; a stack of the same
    size is made in each pass, and kept for the backward pass. Law: `merge` works on a stack of any dtype.
    """

    def forward(self, call: Call, x: Tensor) -> Tensor:
        if self.context.routing is not None:
            raise PeftkitError(f"the adapters of experts at {self.site.id} cannot share a batch with others.")
        module, name = self.site.module, str(self.site.stack)
        stack, _ = self.merge(cast(Tensor, module._parameters[name]), None)
        with _standing(module, name, stack):
            return call(x)


class StackedPairs(Stacked):
    """W_e + s B_e A_e for each expert e with A [experts, rank, in] and B [experts, out, rank] in fp32."""

    def __init__(self, site: Site, method: PairOptions):
        super().__init__(site)
        rank = method.rank_at(site)
        self.scale = method.scale_at(site)
        self.A = nn.Parameter(torch.empty(site.experts, rank, site.inputs))
        self.B = nn.Parameter(torch.empty(site.experts, site.outputs, rank))
        for down, up in zip(self.A, self.B, strict=True):
            method.initialise(cast(Any, SimpleNamespace(A=down, B=up, site=site, scale=self.scale)))

    def delta(self) -> Tensor:
        """Return what is added to the stack, in its own shape and in fp32."""
        delta = torch.bmm(self.B, self.A) * self.scale
        return delta.transpose(1, 2) if self.site.transposed else delta

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.delta().to(weight.dtype), bias


class StackedScale(Stacked):
    """W_e diag(l_e) for each expert e: a vector l [experts, in] of its own multiplies its inputs."""

    before = True

    def __init__(self, site: Site):
        super().__init__(site)
        self.scale = nn.Parameter(torch.ones(site.experts, site.inputs))

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale = self.scale.unsqueeze(2 if self.site.transposed else 1)
        return weight * scale.to(weight.dtype), bias


@contextmanager
def _standing(module: nn.Module, name: str, stack: Tensor) -> Iterator[None]:
    """Have a module read `stack` in the place of its parameter."""
    own = module._parameters[name]
    module._parameters[name] = cast(nn.Parameter, stack)
    try:
        yield
    finally:
        module._parameters[name] = own
