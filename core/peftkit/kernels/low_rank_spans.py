"""One frozen linear map of all tokens, with a low-rank pair of its own beside each span of them, as one function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.ports.adapter import Call


class Pair(NamedTuple):
    """What a span adds: scale up down x, for down [rank, in] and up [out, rank]."""

    down: Tensor
    up: Tensor
    scale: float


class Offer:
    """The frozen call of one span, which takes a pair instead of computing with it (`peftkit.kernels.low_rank`).

    What it answers an offer with holds the place of the result, [..., out], and stands for nothing: a chain that
    returns anything else has to run again without the offer.
    """

    def __init__(self, call: Call, x: Tensor, out: int):
        self.call = call
        self.pair: Pair | None = None
        self.place = x.new_zeros(1).expand(*x.shape[:-1], out)

    def __call__(self, value: Tensor) -> Tensor:
        return self.call(value)

    def take(self, down: Tensor, up: Tensor, scale: float) -> Tensor:
        """Take the pair."""
        self.pair = Pair(down, up, scale)
        return self.place


def linear_with_pairs(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int], pairs: Sequence[Pair | None]
) -> Tensor:
    """Return weight x + bias, [..., out], of frozen weight and bias, plus what each span of `sizes` tokens adds.

    What is kept is x, if a `down` is trained, and its products with the pairs; products are in the dtype of x.
    """
    tensors = [tensor for pair in pairs if pair is not None for tensor in (pair.down, pair.up)]
    scales = [None if pair is None else pair.scale for pair in pairs]
    return cast(Tensor, _Pairs.apply(x, weight, bias, tuple(sizes), scales, *tensors))


class _Pairs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sizes: tuple[int, ...],
        scales: list[float | None],
        *tensors: Tensor,
    ) -> Tensor:
        flat = x.flatten(0, -2)
        y = F.linear(flat, weight, bias)
        flat = flat.to(y.dtype)
        pairs, thins = iter(tensors), []
        for scale, span in zip(scales, _slices(sizes), strict=True):
            if scale is not None:
                thins.append(flat[span] @ next(pairs).to(y.dtype).T)
                y[span].addmm_(thins[-1], (next(pairs) * scale).to(y.dtype).T)
        ctx.save_for_backward(flat if any(ctx.needs_input_grad[5::2]) else None, weight, *thins, *tensors)
        ctx.sizes, ctx.scales, ctx.shape, ctx.dtype = sizes, scales, x.shape, x.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        flat, weight, *rest = ctx.saved_tensors
        count = len(rest) // 3
        thins, pairs = rest[:count], rest[count:]
        given = grads[0].flatten(0, -2)
        of_x = given @ weight.to(given.dtype) if ctx.needs_input_grad[0] else None
        found: list[Tensor | None] = []
        for scale, span in zip(ctx.scales, _slices(ctx.sizes), strict=True):
            if scale is None:
                continue
            at = len(found)
            down, up, mine = pairs[at], pairs[at + 1], given[span]
            inner = mine @ (up * scale).to(given.dtype)
            trained = ctx.needs_input_grad[5 + at : 7 + at]
            found.append((inner.T @ flat[span]).to(down.dtype) if trained[0] else None)
            found.append((thins[at // 2].T @ mine).T.to(up.dtype).mul_(scale) if trained[1] else None)
            if of_x is not None:
                of_x[span].addmm_(inner, down.to(given.dtype))
        return None if of_x is None else of_x.view(ctx.shape).to(ctx.dtype), None, None, None, None, *found


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
