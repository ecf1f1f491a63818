"""The cross-entropy of hidden states behind a frozen linear head, and its gradient by the derivative written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 64
"""Rows of logits that a processor exponentiates together, so that they stay in its cache."""
Scratch = Callable[[str, Sequence[int], torch.dtype], Tensor]
"""Gives memory of a name, shape and dtype that is used again by every call."""


def summed(logits: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Sum the cross-entropies of `logits` [P, V] in fp32, each `weights` [P] times (None: once); -100 is no target."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if weights is None:
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    return each @ weights.to(each.dtype)


def behind_linear(
    hidden: Tensor,
    layer: nn.Linear,
    targets: Tensor,
    weights: Tensor | None,
    smoothing: float,
    gradient: Tensor | None,
    scratch: Scratch,
) -> Tensor:
    """Sum the cross-entropies of `layer(hidden)` against `targets` [P], and write the gradient of `hidden` [P, width].

    The exponentials are made in place, a few rows at a time in fp32, and what each row is divided by is left to the
    product: softmax(l) W = (exp(l - max) W) / sum. The targets' own part is the rows of W that they name.
    """
    weight = layer.weight.to(hidden.dtype)
    logits = scratch("logits", (len(hidden), len(weight)), hidden.dtype)
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
        wide = rows if rows.dtype == kind else scratch("wide", rows.shape, kind).copy_(rows)
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
