"""Low-rank pairs beside frozen linear maps as one function, which keeps little for its backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = tuple[Tensor, Tensor | None]
"""A frozen weight [out, in] and its bias [out]."""


class Pair(NamedTuple):
    """scale up down inside."""

    inside: Tensor
    """[..., in]: what is multiplied."""
    down: Tensor
    """[rank, in]."""
    up: Tensor
    """[out, rank]."""
    scale: float


def add_pair(y: Tensor, pair: Pair) -> Tensor:
    """Return y + scale up down inside, [..., out].

    What is kept are `inside`, if `down` is trained, and its product with `down`; products are in the dtype of y.
    """
    if torch.compiler.is_compiling():
        # The compiler finds the same derivative by itself, and keeps no code with functions like those below.
        inner = pair.inside.flatten(0, -2).to(y.dtype) @ pair.down.to(y.dtype).T
        up = (pair.up * pair.scale).to(y.dtype).T.contiguous()
        return torch.addmm(y.flatten(0, -2), inner, up).view(y.shape)
    return cast(Tensor, _Beside.apply(y, *pair))


def linears_with_pairs(
    x: Tensor,
    linears: Sequence[Linear],
    pairs: Sequence[Sequence[Pair | None]],
    sizes: Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """Return weight x + bias, [..., out], of each frozen linear, with `pairs[i][j]` of it beside tokens j.

    These are all of x [..., in], or the spans of `sizes` tokens one after the other; every pair multiplies x. What is
    kept is x, once, if a `down` is trained, and its products with the pairs; products are in the dtype of x.
    """
    if sizes is None and len(linears) == 1 and (only := pairs[0][0]) is not None:
        return (cast(Tensor, _Linear.apply(x, *linears[0], only.down, only.up, only.scale)),)
    tensors = [tensor for row in pairs for pair in row if pair is not None for tensor in (pair.down, pair.up)]
    scales = [[None if pair is None else pair.scale for pair in row] for row in pairs]
    return cast(tuple[Tensor, ...], _Linears.apply(x, tuple(linears), scales, sizes, *tensors))


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, inside: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        flat = inside.flatten(0, -2).to(y.dtype)
        inner = flat @ down.to(y.dtype).T
        ctx.save_for_backward(flat if ctx.needs_input_grad[2] else None, inner, down, up)
        ctx.scale, ctx.shape, ctx.dtype = scale, inside.shape, inside.dtype
        return _shaped(torch.addmm(y.flatten(0, -2), inner, (up * scale).to(y.dtype).T), y.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, down, up = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)
        of_inner, of_down, of_up = _of_pair(ctx, grad, flat, inner, down, up, ctx.needs_input_grad[3])
        of_inside = None
        if ctx.needs_input_grad[1]:
            of_inside = (of_inner @ down.to(grad.dtype)).view(ctx.shape).to(ctx.dtype)
        return grads[0], of_inside, of_down, of_up, None


class _Linear(torch.autograd.Function):
    """`_Linears` of one linear and one pair: 20 % quicker where the products are small."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        flat = x.flatten(0, -2)
        y = F.linear(flat, weight, bias)
        flat = flat.to(y.dtype)
        inner = flat @ down.to(y.dtype).T
        ctx.save_for_backward(flat if ctx.needs_input_grad[3] else None, inner, weight, down, up)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return _shaped(y.addmm_(inner, (up * scale).to(y.dtype).T), (*x.shape[:-1], y.shape[1]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, weight, down, up = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)
        of_inner, of_down, of_up = _of_pair(ctx, grad, flat, inner, down, up, ctx.needs_input_grad[4])
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (grad @ weight.to(grad.dtype)).addmm_(of_inner, down.to(grad.dtype)).view(ctx.shape).to(ctx.dtype)
        return of_x, None, None, of_down, of_up, None


def _of_pair(
    ctx: Any, grad: Tensor, flat: Tensor | None, inner: Tensor, down: Tensor, up: Tensor, trained: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of the product with `down` [tokens, rank], of `down`, and of an `up` that is `trained`."""
    of_inner = grad @ (up * ctx.scale).to(grad.dtype)
    of_down = None if flat is None else (of_inner.T @ flat).to(down.dtype)
    return of_inner, of_down, (inner.T @ grad).T.to(up.dtype).mul_(ctx.scale) if trained else None


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        linears: tuple[Linear, ...],
        scales: list[list[float | None]],
        sizes: Sequence[int] | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        flat = x.flatten(0, -2)
        outputs = [F.linear(flat, weight, bias) for weight, bias in linears]
        flat = flat.to(outputs[0].dtype)
        inners = []
        for span, members in _spans(scales, sizes):
            downs, ups = _parts(tensors, members)
            inner = (flat if span is None else flat[span]) @ _stacked(downs, flat.dtype).T
            for (at, _, scale), part, up in zip(members, _split(inner, downs), ups, strict=True):
                y = outputs[at] if span is None else outputs[at][span]
                y.addmm_(part, (up * scale).to(y.dtype).T)
            inners.append(inner)
        kept = flat if any(ctx.needs_input_grad[4::2]) else None
        ctx.save_for_backward(kept, *(weight for weight, _ in linears), *inners, *tensors)
        ctx.scales, ctx.sizes, ctx.shape, ctx.dtype = scales, sizes, x.shape, x.dtype
        ctx.set_materialize_grads(False)
        return tuple(_shaped(y, (*x.shape[:-1], y.shape[1])) for y in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        flat, *rest = ctx.saved_tensors
        spans = list(_spans(ctx.scales, ctx.sizes))
        weights, rest = rest[: len(grads)], rest[len(grads) :]
        inners, tensors = rest[: len(spans)], rest[len(spans) :]
        given = [None if grad is None else grad.flatten(0, -2) for grad in grads]
        # Gradients of outputs whose pairs are of all tokens go through the weight below, while they are in the cache.
        paired = {at for _, members in spans for at, _, _ in members} if ctx.sizes is None else ()
        of_x = None
        for at, (grad, weight) in enumerate(zip(given, weights, strict=True)):
            if ctx.needs_input_grad[0] and grad is not None and at not in paired:
                of_x = _through(of_x, grad, weight)
        found: list[Tensor | None] = [None] * len(tensors)
        for (span, members), inner in zip(spans, inners, strict=True):
            downs, ups = _parts(tensors, members)
            of_inners = []
            for (at, place, scale), part, up in zip(members, _split(inner, downs), ups, strict=True):
                grad = given[at]
                if grad is None:
                    of_inners.append(torch.zeros_like(part))
                    continue
                grad = grad if span is None else grad[span]
                of_inners.append(grad @ (up * scale).to(grad.dtype))
                if ctx.needs_input_grad[4 + place + 1]:
                    found[place + 1] = (part.T @ grad).T.to(up.dtype).mul_(scale)
                if span is None and ctx.needs_input_grad[0]:
                    of_x = _through(of_x, grad, weights[at])
            of_inner = of_inners[0] if len(of_inners) == 1 else torch.cat(of_inners, 1)
            if flat is not None:
                of_downs = (of_inner.T @ (flat if span is None else flat[span])).split([len(down) for down in downs])
                for (at, place, _), down, part in zip(members, downs, of_downs, strict=True):
                    if ctx.needs_input_grad[4 + place] and given[at] is not None:
                        found[place] = part.to(down.dtype)
            if of_x is not None:
                (of_x if span is None else of_x[span]).addmm_(of_inner, _stacked(downs, of_inner.dtype))
        return None if of_x is None else of_x.view(ctx.shape).to(ctx.dtype), None, None, None, *found


Member = tuple[int, int, float]
"""A pair: the number of its linear, the place of its `down` among all tensors, and its scale."""


def _spans(
    scales: Sequence[Sequence[float | None]], sizes: Sequence[int] | None
) -> Iterator[tuple[slice | None, list[Member]]]:
    """Iterate over the spans of tokens that have pairs (None: all tokens), and the pairs of each."""
    places = accumulate((scale is not None for row in scales for scale in row), initial=0)
    places = [[2 * next(places) for _ in row] for row in scales]
    ends = [None] if sizes is None else list(accumulate(sizes))
    for number, end in enumerate(ends):
        members = [(at, places[at][number], s) for at, row in enumerate(scales) if (s := row[number]) is not None]
        if members:
            yield None if end is None else slice(end - cast(Sequence[int], sizes)[number], end), members


def _through(of_x: Tensor | None, grad: Tensor, weight: Tensor) -> Tensor:
    """Add the gradient through a weight, [tokens, in], to what others gave."""
    weight = weight.to(grad.dtype)
    return grad @ weight if of_x is None else of_x.addmm_(grad, weight)


def _parts(tensors: Sequence[Tensor], members: Sequence[Member]) -> tuple[list[Tensor], list[Tensor]]:
    return [tensors[place] for _, place, _ in members], [tensors[place + 1] for _, place, _ in members]


def _stacked(downs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return [ranks, in]."""
    return downs[0].to(dtype) if len(downs) == 1 else torch.cat([down.to(dtype) for down in downs])


def _split(inner: Tensor, downs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return what each pair has of products [tokens, ranks]."""
    return [inner] if len(downs) == 1 else inner.split([len(down) for down in downs], dim=1)


def _shaped(y: Tensor, shape: Sequence[int]) -> Tensor:
    """Give y, which nothing else holds, another shape of as many numbers; no view of it, as a model may write to it."""
    return y.resize_(shape)
