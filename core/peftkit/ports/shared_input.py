"""Frozen linear maps of one input, each with a low-rank pair beside it, as one function.

Queries, keys and values read one tensor, as do the gate and the up projection. Together they keep it once, the pairs'
first products are one, and the gradient of the input is summed up in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.kernels.low_rank_spans import Pair
from peftkit.ports.seat import Seat

Plain = tuple[Tensor, Tensor | None]
"""A frozen weight [out, in] and its bias [out]."""


class SharedInput:
    """Seated linear layers that a model gives one and the same tensor, in the order in which it calls them.

    The first that is called computes the outputs of all, and the others find theirs. `waiting` is one for all groups
    of a model: a pass that ends before all outputs are fetched leaves those of one group behind, and no more.
    """

    def __init__(self, members: Sequence[Seat], waiting: dict[Seat, tuple[Tensor, Tensor]]):
        self.members, self.waiting = list(members), waiting

    def output(self, member: Seat, x: Tensor) -> Tensor | None:
        """Return what a member makes of x [..., in]; None where it has to compute by itself."""
        given, y = self.waiting.pop(member, (None, None))
        if given is x:
            return y
        if member is not self.members[0] or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        self.waiting.clear()
        pairs = [other.pair(x) for other in self.members]
        plains = [other.plain() for other in self.members]
        if None in plains or any(pair is None for pair in pairs):
            return None
        first, *others = linears_with_pairs(x, cast(list[Plain], plains), cast(list[Pair], pairs))
        self.waiting.update(zip(self.members[1:], ((x, y) for y in others), strict=True))
        return first


@contextmanager
def shared(groups: Sequence[SharedInput]) -> Iterator[None]:
    """Compute the members of each group together inside."""
    members = [(member, group) for group in groups for member in group.members]
    for member, group in members:
        member.__dict__["sharing"] = group
    try:
        yield
    finally:
        for member, group in members:
            del member.__dict__["sharing"]
            group.waiting.clear()


@contextmanager
def observed(model: nn.Module) -> Iterator[list[SharedInput]]:
    """Find the groups of a model in one forward pass inside; the list is filled when that is over.

    In a group are layers that are called once, one after the other, and whose adapters add a pair to the frozen
    product and nothing else, as they do in training. Random numbers that they draw for that are given back.
    """
    groups: list[SharedInput] = []
    calls: list[tuple[Seat, Tensor]] = []

    def note(seat: nn.Module, args: tuple[Any, ...]) -> None:
        if args:
            calls.append((cast(Seat, seat), args[0]))

    seats = [module for module in model.modules() if isinstance(module, Seat) and module.plain() is not None]
    hooks = [seat.register_forward_pre_hook(note) for seat in seats]
    try:
        yield groups
    finally:
        for hook in hooks:
            hook.remove()
    count = Counter(seat for seat, _ in calls)
    waiting: dict[Seat, tuple[Tensor, Tensor]] = {}
    for _, run in groupby(calls, lambda call: (id(call[1]), count[call[0]] == 1)):
        members = [seat for seat, x in run if count[seat] == 1 and _adds_a_pair(seat, x)]
        if len(members) > 1:
            groups.append(SharedInput(members, waiting))


def _adds_a_pair(seat: Seat, x: Tensor) -> bool:
    training = seat.training
    try:
        with torch.no_grad(), torch.random.fork_rng([x.device] if x.is_cuda else []):
            return seat.train().pair(x) is not None
    finally:
        seat.train(training)


def linears_with_pairs(x: Tensor, plains: Sequence[Plain], pairs: Sequence[Pair]) -> tuple[Tensor, ...]:
    """Return weight x + bias + scale up down x, [..., out], for x [..., in] and each frozen map and its pair.

    What is kept is x, if a `down` is trained, and its products with the pairs; products are in the dtype of x.
    """
    tensors = [tensor for pair in pairs for tensor in (pair.down, pair.up)]
    scales = [pair.scale for pair in pairs]
    return cast(tuple[Tensor, ...], _Linears.apply(x, tuple(plains), scales, *tensors))


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plains: tuple[Plain, ...], scales: list[float], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        flat = x.flatten(0, -2)
        outputs = [F.linear(flat, weight, bias) for weight, bias in plains]
        flat = flat.to(outputs[0].dtype)
        downs, ups = tensors[::2], tensors[1::2]
        thin = flat @ _stacked(downs, flat.dtype).T
        for y, part, up, scale in zip(outputs, _parts(thin, downs), ups, scales, strict=True):
            y.addmm_(part, (up * scale).to(y.dtype).T)
        kept = flat if any(ctx.needs_input_grad[3::2]) else None
        ctx.save_for_backward(kept, thin, *tensors, *(weight for weight, _ in plains))
        ctx.scales, ctx.shape, ctx.dtype = scales, x.shape, x.dtype
        ctx.set_materialize_grads(False)
        return tuple(y.view(*x.shape[:-1], -1) for y in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        flat, thin, *rest = ctx.saved_tensors
        pairs, weights = rest[: 2 * len(grads)], rest[2 * len(grads) :]
        downs, ups = pairs[::2], pairs[1::2]
        inner, of_x = torch.zeros_like(thin), None
        found: list[Tensor | None] = [None] * len(pairs)
        parts = zip(grads, weights, ups, ctx.scales, _parts(thin, downs), _parts(inner, downs), strict=True)
        for place, (grad, weight, up, scale, part, into) in enumerate(parts):
            if grad is None:
                continue
            given = grad.flatten(0, -2)
            into.copy_(given @ (up * scale).to(given.dtype))
            if ctx.needs_input_grad[4 + 2 * place]:
                found[2 * place + 1] = (part.T @ given).T.to(up.dtype).mul_(scale)
            if ctx.needs_input_grad[0]:
                weight = weight.to(given.dtype)
                of_x = given @ weight if of_x is None else of_x.addmm_(given, weight)
        if flat is not None:
            of_downs = (inner.T @ flat).split([len(down) for down in downs])
            for place, (down, part, grad) in enumerate(zip(downs, of_downs, grads, strict=True)):
                if ctx.needs_input_grad[3 + 2 * place] and grad is not None:
                    found[2 * place] = part.to(down.dtype)
        if of_x is not None:
            of_x = of_x.addmm_(inner, _stacked(downs, inner.dtype)).view(ctx.shape).to(ctx.dtype)
        return of_x, None, None, *found


def _stacked(downs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return [ranks, in]."""
    return torch.cat([down.to(dtype) for down in downs])


def _parts(thin: Tensor, downs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return what each pair has of products [tokens, ranks]."""
    return thin.split([len(down) for down in downs], dim=1)
