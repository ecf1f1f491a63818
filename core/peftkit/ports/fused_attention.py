"""Attention along a tree run by run, each through the fused kernel that torch has for processors.

The kernel is called run by run and not on rows padded to one length, where it takes up to twice as long. Its backward
pass is slow in bf16 at the lengths of fine-tuning (four times the fp32 one), so that runs in fp32 always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.ports.tree_plan import Plan, Run

_FORWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def possible(q: Tensor, v: Tensor, cap: float | None) -> bool:
    """Say whether the kernel can do it: on a processor, without a cap, heads of one size; torch calls it private."""
    there = _FORWARD is not None and _BACKWARD is not None
    return there and q.device.type == "cpu" and cap is None and q.shape[-1] == v.shape[-1]


def forward(q: Tensor, k: Tensor, v: Tensor, plan: Plan, first: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return y [N, heads, size] and the logarithms of the sums [heads, N] of q [heads, N, size].

    k and v are [groups, first + N or first, size]: each token sees the `first` keys and those of its path.
    """
    if k.shape[1] == first:
        y, totals = _FORWARD(q[None], k[None], v[None], 0.0, False, scale=scale)
        return y[0].transpose(0, 1).contiguous(), totals[0]
    runs = plan.runs(first > 0)
    lengths = [run.length for run in runs]
    ys, totals = [], []
    keys, values = (_seen(x, first, runs, lengths) for x in (k, v))
    for run, part, *given in zip(runs, q[None].split(lengths, 2), keys, values, strict=True):
        causal, mask = plan.mask(run, first, q.dtype)
        y, total = _FORWARD(part, *given, 0.0, causal, attn_mask=mask, scale=scale)
        ys.append(y[0].transpose(0, 1))
        totals.append(total[0].T)
    return torch.cat(ys), torch.cat(totals).T


def backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, totals: Tensor, plan: Plan, first: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v from that of y [N, heads, size], all in the shapes of `forward`."""
    wide = totals.dtype
    dy, y, dtype = dy.transpose(0, 1), y.transpose(0, 1), q.dtype
    q, k, v, dy, y = (x.to(wide) for x in (q, k, v, dy, y))
    if k.shape[1] == first:
        found = _BACKWARD(dy[None], q[None], k[None], v[None], y[None], totals[None], 0.0, False, scale=scale)
        dq, dk, dv = (x[0].to(dtype) for x in found)
        return dq, dk, dv
    runs = plan.runs(first > 0)
    lengths = [run.length for run in runs]
    parts = zip(*(x[None].split(lengths, 2) for x in (dy, q, y, totals)), strict=True)
    keys, values = (_seen(x, first, runs, lengths) for x in (k, v))
    found = []
    for run, (given, queries, out, total), key, value in zip(runs, parts, keys, values, strict=True):
        causal, mask = plan.mask(run, first, wide)
        found.append(_BACKWARD(given, queries, key, value, out, total, 0.0, causal, attn_mask=mask, scale=scale))
    dqs, dks, dvs = zip(*found, strict=True)
    dq, dk, dv = _joined(dqs, 0, [], dtype), _joined(dks, first, runs, dtype), _joined(dvs, first, runs, dtype)
    return dq, dk, dv


def _seen(x: Tensor, first: int, runs: Sequence[Run], lengths: Sequence[int]) -> list[Tensor]:
    """Return of keys or values [groups, first + N, size] those that each run sees, [1, groups, K, size]."""
    front, own = x[:, :first], x[:, first:]
    found = []
    for run, part in zip(runs, own.split(lengths, 1), strict=True):
        ahead = [front] if first else []
        if run.ahead is not None:
            ahead.append(own[:, run.ahead] if isinstance(run.ahead, slice) else own.index_select(1, run.ahead))
        found.append((torch.cat([*ahead, part], 1) if ahead else part)[None])
    return found


def _joined(parts: Sequence[Tensor], first: int, runs: Sequence[Run], dtype: torch.dtype) -> Tensor:
    """Add up what came to queries or keys, [heads, first + N, size] in `dtype`, from that of each run."""
    rows = [part[0].transpose(0, 1) for part in parts]
    if not first and all(run.ahead is None for run in runs):
        return torch.cat(rows).to(dtype).transpose(0, 1)
    own = torch.cat([rows[0][:first], *(part[-run.length :] for part, run in zip(rows, runs, strict=True))])
    for number, (part, run) in enumerate(zip(rows, runs, strict=True)):
        if first and number:
            own[:first] += part[:first]
        if isinstance(run.ahead, slice):
            own[first:][run.ahead] += part[first : -run.length]
        elif run.ahead is not None:
            own[first:].index_add_(0, run.ahead, part[first : -run.length])
    return own.to(dtype).transpose(0, 1)
