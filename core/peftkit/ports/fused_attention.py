"""Attention along a tree block by block, each through the fused kernel that torch has for processors.

The kernel is called block by block and not on rows padded to one length, where it takes up to twice as long. Its
backward pass is slow in bf16 at the lengths of fine-tuning (four times the fp32 one), so that runs in fp32 always.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.ports.block_attention import Span, add, keys_of
from peftkit.ports.tree_plan import Plan

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
    text, repeat = k.shape[1] > first, len(q) // len(k)
    y = q.new_empty(q.shape[1], q.shape[0], v.shape[2])
    totals = q.new_empty(*q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    for span in plan.spans:
        keys, values = (_repeated(keys_of(x, span, first), repeat, x.dtype) for x in (k, v))
        causal, bias = _seen(span, first, keys.shape[2], text, q.dtype)
        out, total = _FORWARD(q[None, :, span.queries], keys, values, 0.0, causal, attn_mask=bias, scale=scale)
        y[span.queries] = out[0].transpose(0, 1)
        totals[:, span.queries] = total[0]
    return y, totals


def backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, totals: Tensor, plan: Plan, first: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v from that of y [N, heads, size], all in the shapes of `forward`."""
    text, repeat, wide = k.shape[1] > first, len(q) // len(k), totals.dtype
    dy, y = dy.transpose(0, 1), y.transpose(0, 1)
    dq = torch.empty_like(q)
    dk, dv = (_room(x, first, plan.once, wide) for x in (k, v))
    for span in plan.spans:
        given, queries, out = (x[None, :, span.queries].to(wide) for x in (dy, q, y))
        keys, values = (_repeated(keys_of(x, span, first), repeat, wide) for x in (k, v))
        causal, bias = _seen(span, first, keys.shape[2], text, wide)
        total = totals[None, :, span.queries]
        found = _BACKWARD(given, queries, keys, values, out, total, 0.0, causal, attn_mask=bias, scale=scale)
        dq[:, span.queries] = found[0][0]
        for x, part in zip((dk, dv), found[1:], strict=True):
            part = part[0] if repeat == 1 else part[0].unflatten(0, (-1, repeat)).sum(1)
            add(x, span, first, part, fresh=plan.once)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _seen(span: Span, first: int, count: int, text: bool, dtype: torch.dtype) -> tuple[bool, Tensor | None]:
    """Return whether queries see their own tokens and those before alone, or else what is added to the scores."""
    if not text:
        return False, None
    length, masked = span.mask.shape
    if not span.windowed and count == length:
        return True, None
    return False, F.pad(span.mask.to(dtype), (count - masked, 0))


def _repeated(x: Tensor, repeat: int, dtype: torch.dtype) -> Tensor:
    """Return keys or values [groups, K, size] for each head: [1, groups * repeat, K, size]."""
    x = x.to(dtype)
    return (x if repeat == 1 else x[:, None].expand(-1, repeat, -1, -1).flatten(0, 1))[None]


def _room(x: Tensor, first: int, once: bool, wide: torch.dtype) -> Tensor:
    """Return a place for the gradient of keys or values; sums of several blocks are held in `wide`."""
    if not once:
        return torch.zeros_like(x, dtype=wide)
    room = torch.empty_like(x, dtype=wide if first else x.dtype)
    room[:, :first] = 0
    return room
