"""Adapters of weights stored as codes and scales: the storage takes up what they change without touching a code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.layout import Rows, Site
from peftkit.ports.adapter import Call
from peftkit.ports.linear import Delta, linear
from peftkit.quantization.quantizer import formats
from peftkit.quantization.weight import Steps, steps, traits


def check_stored(sites: list[Site], method: str, trait: str | None) -> list[Site]:
    """Return the sites; PeftkitError for one whose storage has not the trait that the method of this name needs."""
    for site in sites:
        if trait not in traits(site.module):
            able = ", ".join(formats(str(trait)))
            raise PeftkitError(
                f"{method}: the weight of {site.id} is not stored as {trait}: set quantization to one of {able}, or "
                "leave it out of targets."
            )
    return sites


def groups(site: Site) -> int:
    """Return how many groups of inputs share a scale at each output of a site."""
    return steps(site.module).scale.shape[1]


def spread(values: Tensor, inputs: int) -> Tensor:
    """Repeat values [out, groups] over the inputs of their groups: [out, in]."""
    return values.repeat_interleave(inputs // values.shape[1], 1)


class StoredDelta(Delta):
    """A change of a stored weight by other scales or zero points: `shift` says which."""

    def steps(self) -> Steps:
        """Return how the weight of the site follows its scales."""
        whole, rows = steps(self.site.module), self.site.rows
        if rows is None:
            return whole
        return Steps(_rows(whole.scale, rows), lambda: _rows(whole.basis(), rows))


class Scales(StoredDelta):
    """W + (d, over its groups) * basis: d [out, groups] is added to the scales; zero at the start.

    The basis is read for the forward and again for the backward pass, which keeps x and d alone.
    """

    undecayed: tuple[str, ...] = ("scale",)

    def __init__(self, site: Site):
        super().__init__(site)
        self.scale = torch.nn.Parameter(torch.zeros(site.outputs, groups(site)))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        return call(x) + _Scaled.apply(x, self.scale, self)

    def delta(self, weight: Tensor) -> Tensor:
        return spread(self.scale, self.site.inputs) * self.steps().basis()

    def shift(self) -> tuple[Tensor | None, Tensor | None]:
        return self.scale.detach(), None


class _Scaled(torch.autograd.Function):
    """x ((d over its groups) * basis)^T."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, adapter: Scales) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.adapter = adapter
        return linear(x, spread(scale, x.shape[-1]) * adapter.steps().basis())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, scale) = gradients, ctx.saved_tensors
        basis = ctx.adapter.steps().basis()
        of_x = of_scale = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ (spread(scale, x.shape[-1]) * basis).to(gradient.dtype)).to(x.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = gradient.flatten(0, -2).T @ x.flatten(0, -2).to(gradient.dtype)
            of_scale = (of_weight.to(scale.dtype) * basis).unflatten(1, (scale.shape[1], -1)).sum(2)
        return of_x, of_scale, None


def _rows(values: Tensor, rows: Rows) -> Tensor:
    return rows.take(values.T).T
