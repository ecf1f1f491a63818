"""A frozen linear map whose input is multiplied by a trained vector, as one function in few passes over the tokens."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.ports.adapter import Call
from peftkit.ports.thin import PLAIN


def scale_input(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """Return call(scale * x), [..., out], for x [..., in] and scale [in]; products are in the dtype of x."""
    plain = getattr(call, PLAIN, None)
    if plain is None or torch.compiler.is_compiling():
        return call(x * scale.to(x.dtype))
    return cast(Tensor, _Scaled.apply(x, *plain, scale))


class _Scaled(torch.autograd.Function):
    """x is kept; the weight's columns are scaled instead of x, of which there is more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        return F.linear(x, weight * scale.to(weight.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        inner = grads[0] @ weight.to(grads[0].dtype)
        of_scale = (inner * x).flatten(0, -2).sum(0).to(scale.dtype) if ctx.needs_input_grad[3] else None
        of_x = inner.mul_(scale.to(inner.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_scale
