"""A low-rank pair for each expert of a frozen stack of weights, which the model multiplies in a way of its own."""

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


class StackedPairs(Adapter):
    """W_e + s B_e A_e for each expert e with A [experts, rank, in] and B [experts, out, rank] in fp32.

    While the module of the experts runs, the sum stands in the place of the stack, so that it is exact however the
    experts are computed; a sum of the stack's size is made in each pass, and kept for the backward pass.
    """

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

    def forward(self, call: Call, x: Tensor) -> Tensor:
        if self.context.routing is not None:
            raise PeftkitError(f"the adapters of experts at {self.site.id} cannot share a batch with others.")
        module, name = self.site.module, str(self.site.stack)
        stack = cast(Tensor, module._parameters[name])
        with _standing(module, name, stack + self.delta().to(stack.dtype)):
            return call(x)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.delta(), bias


@contextmanager
def _standing(module: nn.Module, name: str, stack: Tensor) -> Iterator[None]:
    """Have a module read `stack` in the place of its parameter."""
    own = module._parameters[name]
    module._parameters[name] = cast(nn.Parameter, stack)
    try:
        yield
    finally:
        module._parameters[name] = own
