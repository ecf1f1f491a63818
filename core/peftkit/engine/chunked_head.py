"""A function of tokens behind a model's head, in chunks that never hold all logits; its gradient is made on the way."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from peftkit.engine.head import Head
from peftkit.objectives import TokenFunction

CHUNK = 512
"""Hidden states whose logits are there at one time; bf16 products of fewer rows take several times as long for each."""


def chunked_sum(
    head: Head, function: TokenFunction, hidden: Tensor, targets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Sum a function over `hidden` [P, width] and `targets` [P], each `weights` [P] times (None: once).

    The gradients of the hidden states and of trained parameters of the head are computed chunk by chunk in the forward
    pass, when the logits are there: the backward pass multiplies them by one number. 0 where P is 0.
    """
    if not len(targets):
        return hidden.sum(dtype=torch.float32) * 0
    trained = [] if head.plain() is not None else head.trained(hidden)
    return cast(Tensor, _Sum.apply(hidden, targets, weights, function, head, *trained))


def chunked_values(head: Head, function: TokenFunction, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return the values [P] of a function; the backward pass recomputes the logits of each chunk."""
    if not len(targets):
        return hidden.sum(1, dtype=torch.float32)
    trained = [] if head.plain() is not None else head.trained(hidden)
    return cast(Tensor, _Values.apply(hidden, targets, function, head, *trained))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        function: TokenFunction,
        head: Head,
        *trained: Tensor,
    ) -> Tensor:
        wanted = [hidden, *trained] if any(ctx.needs_input_grad) else []
        layer, scratch = head.plain(), partial(head.scratch, hidden.device)
        gradients = [torch.zeros_like(tensor) for tensor in wanted]
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            each = None if weights is None else weights[part]
            loss = None
            if layer is not None:
                into = gradients[0][part] if wanted else None
                loss = function.behind_linear(hidden[part], layer, targets[part], each, into, scratch)
            if loss is None:
                loss = _general(head, function, hidden[part], targets[part], each, trained, gradients, part)
            total += loss
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [gradient.mul_(grads[0].to(gradient.dtype)) for gradient in ctx.saved_tensors]
        return scaled[0], None, None, None, None, *scaled[1:]


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, function: TokenFunction, head: Head, *trained: Tensor
    ) -> Tensor:
        ctx.function, ctx.head = function, head
        ctx.save_for_backward(hidden, targets, *trained)
        chunks = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
        return torch.cat([function.values(head.logits(rows), wanted) for rows, wanted in chunks])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, *trained = ctx.saved_tensors
        gradients = [torch.zeros_like(tensor) for tensor in (hidden, *trained)]
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            with torch.enable_grad():
                leaf = hidden[part].detach().requires_grad_()
                values = ctx.function.values(ctx.head.logits(leaf), targets[part])
                derived = torch.autograd.grad(values, [leaf, *trained], grads[0][part], allow_unused=True)
            _add(gradients, derived, part)
        return gradients[0], None, None, None, *gradients[1:]


def _general(
    head: Head,
    function: TokenFunction,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    trained: tuple[Tensor, ...],
    gradients: list[Tensor],
    part: slice,
) -> Tensor:
    """Return the sum of a chunk and add its gradients, by torch's derivative of whatever the head computes."""
    if not gradients:
        return function.total(head.logits(rows), targets, weights)
    with torch.enable_grad():
        leaf = rows.detach().requires_grad_()
        loss = function.total(head.logits(leaf), targets, weights)
        derived = torch.autograd.grad(loss, [leaf, *trained], allow_unused=True)
    _add(gradients, derived, part)
    return loss.detach()


def _add(gradients: list[Tensor], derived: tuple[Tensor | None, ...], part: slice) -> None:
    """Put the gradient of a chunk's hidden states in its place, and add those of the head's parameters."""
    if derived[0] is not None:
        gradients[0][part] = derived[0]
    for kept, more in zip(gradients[1:], derived[1:], strict=True):
        if more is not None:
            kept += more
