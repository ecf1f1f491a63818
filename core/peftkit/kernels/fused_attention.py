"""Attention along a tree run by run, each through the fused kernel that torch has for processors.

The kernel is called run by run and not on rows padded to one length, where it takes up to twice as long, nor on rows
of one length together, which gains nothing. Its backward pass is slow in bf16 at the lengths of fine-tuning (four times
the fp32 one), so that runs in fp32 always: with the casts it takes as long as batched products in bf16 on AMX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.kernels.tree_plan import Run, TreePlan

_FORWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
PRESENT = _FORWARD is not None and _BACKWARD is not None
"""Whether this version of torch has the kernel, which it calls private."""


def possible(q: Tensor, v: Tensor) -> bool:
    """Say whether the kernel can do it: on a processor, heads of one size."""
    return PRESENT and q.device.type == "cpu" and q.shape[-1] == v.shape[-1]


def attend(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, first: int, scale: float) -> Tensor:
    """Return y [N, heads, size] of q [heads, N, size].

    k and v are [groups, first + N or first, size]: each token sees the `first` keys and those of its path.
    """
    return cast(Tensor, Fused.apply(q, k, v, plan, first, scale))


class Fused(torch.autograd.Function):
    """The kernel's own passes; what is kept beside the output is the logarithm of each softmax's sum."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, first: int, scale: float) -> Tensor:
        y, totals = _forward(q, k, v, plan, first, scale)
        ctx.save_for_backward(q, k, v, y, totals)
        ctx.plan, ctx.first, ctx.scale = plan, first, scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, totals = ctx.saved_tensors
        return *_backward(grads[0], q, k, v, y, totals, ctx.plan, ctx.first, ctx.scale), None, None, None


def _forward(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, first: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return y and the logarithms of the sums [heads, N]."""
    if k.shape[1] == first:
        y, totals = _FORWARD(q[None], k[None], v[None], 0.0, False, scale=scale)
        return y[0].transpose(0, 1).clone(memory_format=torch.contiguous_format), totals[0]
    runs = plan.runs(first)
    lengths = [run.length for run in runs]
    ys, totals = [], []
    keys, values = (_seen(x, first, runs) for x in (k, v))
    for run, part, *given in zip(runs, q[None].split(lengths, 2), keys, values, strict=True):
        causal, mask = plan.mask(run, first, q.dtype)
        y, total = _FORWARD(part, *given, 0.0, causal, attn_mask=mask, scale=scale)
        ys.append(y[0].transpose(0, 1))
        totals.append(total[0].T)
    return torch.cat(ys), torch.cat(totals).T


def _backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, totals: Tensor, plan: TreePlan, first: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v from that of y [N, heads, size], all in the shapes of `attend`."""
    wide = totals.dtype
    dy, y = dy.transpose(0, 1), y.transpose(0, 1)
    if k.shape[1] == first:
        given = (x[None].to(wide) for x in (dy, q, k, v, y))
        dq, dk, dv = (x[0].to(q.dtype) for x in _BACKWARD(*given, totals[None], 0.0, False, scale=scale))
        return dq, dk, dv
    runs = plan.runs(first)
    lengths = [run.length for run in runs]
    given, queries, out, sums = (x[None].split(lengths, 2) for x in (dy, q, y, totals))
    rows = zip(runs, given, queries, *(_seen(x, first, runs) for x in (k, v)), out, sums, strict=True)
    # Cast run by run, while a run is in the cache. Sums of what came from several runs are held in `wide`.
    held = wide if first or any(run.count for run in runs) else q.dtype
    dqs, dks, dvs = [], [], []
    for run, *parts in rows:
        causal, mask = plan.mask(run, first, wide)
        grads = _BACKWARD(*(x.to(wide) for x in parts), 0.0, causal, attn_mask=mask, scale=scale)
        for kept, part, dtype in zip((dqs, dks, dvs), grads, (q.dtype, held, held), strict=True):
            kept.append(part[0].transpose(0, 1).to(dtype))
    dk, dv = (_added(parts, first, runs).to(q.dtype) for parts in (dks, dvs))
    return torch.cat(dqs).transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1)


def _seen(x: Tensor, first: int, runs: Sequence[Run]) -> list[Tensor]:
    """Return of keys or values [groups, first + N, size] those that each run is given, [1, groups, K, size]."""
    front, own = x[None, :, :first], x[None, :, first:]
    seen = []
    for run in runs:
        wanted = run.length + run.spare
        # What stands behind a run's own tokens does as well as zeros, and needs no copy.
        part = own[:, :, run.start : run.start + wanted]
        if part.shape[2] < wanted:
            part = F.pad(part, (0, 0, 0, wanted - part.shape[2]))
        if first or run.count:
            part = torch.cat([front, *_ahead(own, run), part], 2)
        seen.append(part)
    return seen


def _ahead(own: Tensor, run: Run) -> list[Tensor]:
    """Return the keys or values on a run's path ahead of its own tokens, if there are any."""
    if run.ahead is None:
        return []
    return [own[:, :, run.ahead] if isinstance(run.ahead, slice) else own.index_select(2, run.ahead)]


def _added(parts: Sequence[Tensor], first: int, runs: Sequence[Run]) -> Tensor:
    """Add up what came to keys, [first + N, groups, size], from that of each run's [K, groups, size]."""
    pairs = list(zip(parts, runs, strict=True))
    own = [part.narrow(0, first + run.count, run.length) for part, run in pairs]
    x = torch.cat([parts[0][:first], *own])
    for number, (part, run) in enumerate(pairs):
        if first and number:
            x[:first] += part[:first]
        before = part[first : first + run.count]
        if isinstance(run.ahead, slice):
            x[first:][run.ahead] += before
        elif run.ahead is not None:
            x[first:].index_add_(0, run.ahead, before)
    return x
