"""The work between products, norms, activations and rotary positions, in few operations and with little kept.

The functions here stand in for the model's own code in training passes: a norm and a gated activation keep what they
read and say how what they make is made (`peftkit.kernels.recompute`). Sums are in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from peftkit.kernels.recompute import Recompute


def norm(recompute: Recompute, x: Tensor, factor: Tensor, eps: float) -> Tensor:
    """Return factor x / sqrt(mean(x²) + eps), [..., width], for x [..., width] and a frozen factor [width]."""
    y, squares = cast(tuple[Tensor, Tensor], _Norm.apply(x, factor, eps))
    recompute.remember(y, partial(_scaled, eps), x, squares, factor)
    return y


def gated(recompute: Recompute, gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Return activation(gate) * up, of the shape of both."""
    held = _Held(activation, gate.device.type)
    y = cast(Tensor, _Gated.apply(gate, up, held))
    recompute.remember(y, held.product, gate, up)
    return y


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x turned by rotary positions: x cos + (-second half, first half) sin, cos and sin broadcast to x."""
    return cast(Tensor, _Rotary.apply(x, cos, sin))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        squares = torch.linalg.vector_norm(x, dim=-1, dtype=wide).square_().div_(x.shape[-1]).flatten()
        ctx.save_for_backward(x, squares, factor)
        ctx.eps = eps
        ctx.mark_non_differentiable(squares)
        ctx.set_materialize_grads(False)
        return _scaled(eps, x, squares, factor), squares

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return None, None, None
        x, squares, factor = ctx.saved_tensors
        width = len(factor)
        flat, given = x.reshape(-1, width), grads[0].reshape(-1, width).contiguous()
        root = squares.add(ctx.eps).rsqrt_()
        # The derivative of a layer norm, which torch has as one kernel, is this one but for a number of each row.
        zero, roots = torch.zeros_like(root)[:, None], root[:, None]
        wide, wanted = factor.to(root.dtype), [True, False, False]
        found = torch.ops.aten.native_layer_norm_backward(given, flat, [width], zero, roots, wide, None, wanted)[0]
        means = torch.mv(given, factor).mul(root).div_(width)
        return found.add_(means.to(found.dtype)[:, None]).view(x.shape), None, None


def _scaled(eps: float, x: Tensor, squares: Tensor, factor: Tensor) -> Tensor:
    # torch has the product of rows in bf16 and numbers in fp32 as one kernel: a batch norm whose channels are the rows.
    rows, mean = x.reshape(1, len(squares), -1), torch.zeros_like(squares)
    return torch.ops.aten.native_batch_norm(rows, None, None, mean, squares, False, 0.0, eps)[0].view(x.shape) * factor


class _Held:
    """An activation whose output waits from where the product is made again until its derivative is wanted."""

    def __init__(self, activation: Callable[[Tensor], Tensor], device: str):
        self.activation = activation
        # What is made again is cast as it was, though backward passes run without autocast.
        on, kind = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self._casts = torch.autocast(device, kind) if on else nullcontext()
        self._made: tuple[Tensor, Tensor] | None = None

    def product(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return activation(gate) * up."""
        self._made = self._run(gate)
        return self._made[1].detach() * up

    def take(self, gate: Tensor) -> tuple[Tensor, Tensor]:
        """Return a leaf like `gate` and its activation, which hangs on it."""
        made, self._made = self._made, None
        return made or self._run(gate)

    def _run(self, gate: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), self._casts:
            leaf = gate.detach().requires_grad_()
            return leaf, self.activation(leaf)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, held: _Held) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.held = held
        return held.activation(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        leaf, active = ctx.held.take(gate)
        (of_gate,) = torch.autograd.grad(active, leaf, grads[0] * up)
        return of_gate, active.detach().mul_(grads[0]), None


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        y = x * cos
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        given, half = grads[0], grads[0].shape[-1] // 2
        found = given * cos
        found[..., :half].addcmul_(given[..., half:], sin[..., half:])
        found[..., half:].addcmul_(given[..., :half], sin[..., :half], value=-1)
        return found, None, None
