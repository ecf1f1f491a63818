"""The cross-entropy of chosen hidden states, in chunks that never hold all logits; its gradient is made on the way."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.engine.head import Head

CHUNK = 512
"""Hidden states whose logits are there at one time; bf16 products of fewer rows take several times as long for each."""
ROWS = 64
"""Rows of logits that a processor exponentiates together, so that they stay in its cache."""


def cross_entropy(head: Head, hidden: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Sum the cross-entropies of `hidden` [P, width] against `targets` [P], each `weights` [P] times (None: once).

    The gradients of the hidden states and of trained parameters of the head are found chunk by chunk in the forward
    pass, when the logits are there: the backward pass multiplies them by one number. 0 where P is 0.
    """
    if not len(targets):
        return hidden.sum(dtype=torch.float32) * 0
    trained = [] if head.plain(hidden) is not None else head.trained(hidden)
    return cast(Tensor, _CrossEntropy.apply(hidden, targets, weights, smoothing, head, *trained))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        smoothing: float,
        head: Head,
        *trained: Tensor,
    ) -> Tensor:
        wanted = [hidden, *trained] if any(ctx.needs_input_grad) else []
        layer = head.plain(hidden)
        gradients = [torch.zeros_like(tensor) for tensor in wanted]
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            each = None if weights is None else weights[part]
            rows = hidden[part]
            if layer is not None:
                into = gradients[0][part] if wanted else None
                loss = _plain(head, layer, rows, targets[part], each, smoothing, into)
            else:
                loss = _general(head, rows, targets[part], each, smoothing, trained, gradients, part)
            total += loss
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [gradient.mul_(grads[0].to(gradient.dtype)) for gradient in ctx.saved_tensors]
        return scaled[0], None, None, None, None, *scaled[1:]


def _plain(
    head: Head,
    layer: nn.Linear,
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    smoothing: float,
    gradient: Tensor | None,
) -> Tensor:
    """Return the loss of a chunk, and write the gradient of its rows into `gradient`, by the derivative written out.

    The exponentials are made in place, a few rows at a time in fp32, and what each row is divided by is left to the
    product: softmax(l) W = (exp(l - max) W) / sum. The targets' own part is the rows of W that they name.
    """
    weight = layer.weight.to(hidden.dtype)
    logits = head.scratch("logits", (len(hidden), len(weight)), hidden.dtype)
    torch.mm(hidden, weight.T, out=logits)
    if layer.bias is not None:
        logits += layer.bias
    kind = torch.promote_types(logits.dtype, torch.float32)
    chosen = logits.gather(1, targets[:, None]).squeeze(1).to(kind)
    tops, sums, means = (torch.empty(len(logits), dtype=kind, device=logits.device) for _ in range(3))
    together = ROWS if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), together):
        part = slice(start, start + together)
        rows = logits[part]
        wide = rows if rows.dtype == kind else head.scratch("wide", rows.shape, kind).copy_(rows)
        torch.amax(wide, 1, out=tops[part])
        if smoothing:
            torch.mean(wide, 1, out=means[part])
        torch.sum(wide.sub_(tops[part, None]).exp_(), 1, out=sums[part])
        if wide is not rows and gradient is not None:
            rows.copy_(wide)
    losses = sums.log() + tops - (1 - smoothing) * chosen
    if smoothing:
        losses -= smoothing * means
    if gradient is not None:
        torch.mm(logits, weight, out=gradient)
        own = weight.index_select(0, targets).mul_(1 - smoothing)
        if smoothing:
            own += (smoothing / len(weight)) * weight.sum(0, dtype=kind).to(weight.dtype)
        gradient.mul_((1 / sums).to(gradient.dtype)[:, None]).sub_(own)
        if weights is not None:
            gradient *= weights.to(gradient.dtype)[:, None]
    return losses.sum() if weights is None else losses @ weights.to(losses.dtype)


def _general(
    head: Head,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    smoothing: float,
    trained: tuple[Tensor, ...],
    gradients: list[Tensor],
    part: slice,
) -> Tensor:
    """Return the loss of a chunk and add its gradients, by torch's derivative of whatever the head computes."""
    if not gradients:
        return _sum(head.logits(rows), targets, weights, smoothing)
    with torch.enable_grad():
        leaf = rows.detach().requires_grad_()
        loss = _sum(head.logits(leaf), targets, weights, smoothing)
        found = torch.autograd.grad(loss, [leaf, *trained], allow_unused=True)
    if found[0] is not None:
        gradients[0][part] = found[0]
    for kept, more in zip(gradients[1:], found[1:], strict=True):
        if more is not None:
            kept += more
    return loss.detach()


def _sum(logits: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if weights is None:
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing) @ weights
