"""A frozen linear map and a low-rank pair beside it as one function, which keeps little for its backward pass."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.kernels.low_rank_spans import Offer
from peftkit.ports.adapter import Call

PLAIN = "plain"
"""The attribute of a seat's frozen call that holds the dense frozen weight and bias, where the call is their map."""


def add_pair(call: Call, x: Tensor, inside: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return call(x) + scale up down inside, [..., out], for x and inside [..., in], down [rank, in], up [out, rank].

    What is kept are `inside`, if `down` is trained, and its product with `down`; products are in the dtype of x.
    """
    if torch.compiler.is_compiling():
        # The compiler finds the same derivative by itself, and keeps no code with functions like those below.
        y = call(x)
        thin = inside.flatten(0, -2).to(y.dtype) @ down.to(y.dtype).T
        return torch.addmm(y.flatten(0, -2), thin, (up * scale).to(y.dtype).T.contiguous()).view(y.shape)
    if isinstance(call, Offer) and inside is x:
        return call.take(down, up, scale)
    plain = getattr(call, PLAIN, None)
    if plain is not None and inside is x:
        return cast(Tensor, _Whole.apply(x, *plain, down, up, scale))
    return cast(Tensor, _Beside.apply(call(x), inside, down, up, scale))


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        flat = x.flatten(0, -2)
        y = F.linear(flat, weight, bias)
        a, b = down.to(y.dtype), (up * scale).to(y.dtype)
        flat = flat.to(y.dtype)
        thin = flat @ a.T
        ctx.save_for_backward(flat if ctx.needs_input_grad[3] else None, thin, weight, down, up)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return y.addmm_(thin, b.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, thin, weight, down, up = ctx.saved_tensors
        given = grads[0].flatten(0, -2)
        inner, of_down, of_up = _inner(ctx, given, flat, thin, down, up, 3)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (given @ weight.to(given.dtype)).addmm_(inner, down.to(given.dtype)).view(ctx.shape).to(ctx.dtype)
        return of_x, None, None, of_down, of_up, None


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, inside: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        flat = inside.flatten(0, -2).to(y.dtype)
        thin = flat @ down.to(y.dtype).T
        ctx.save_for_backward(flat if ctx.needs_input_grad[2] else None, thin, down, up)
        ctx.scale, ctx.shape, ctx.dtype = scale, inside.shape, inside.dtype
        return torch.addmm(y.flatten(0, -2), thin, (up * scale).to(y.dtype).T).view(y.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, thin, down, up = ctx.saved_tensors
        given = grads[0].flatten(0, -2)
        inner, of_down, of_up = _inner(ctx, given, flat, thin, down, up, 2)
        of_inside = (inner @ down.to(given.dtype)).view(ctx.shape).to(ctx.dtype) if ctx.needs_input_grad[1] else None
        return grads[0], of_inside, of_down, of_up, None


def _inner(
    ctx: Any, given: Tensor, flat: Tensor | None, thin: Tensor, down: Tensor, up: Tensor, at: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradient of the product with `down` [tokens, rank], and those of `down` and `up`, inputs from `at`."""
    inner = given @ (up * ctx.scale).to(given.dtype)
    of_down = None if flat is None else (inner.T @ flat).to(down.dtype)
    of_up = (thin.T @ given).T.to(up.dtype).mul_(ctx.scale) if ctx.needs_input_grad[at + 1] else None
    return inner, of_down, of_up
