"""Attention along a tree on a GPU: all runs of queries in one call of torch's attention for rows of many lengths.

Its kernel is FlashAttention-2 (Dao 2023, arXiv:2307.08691). A run reads keys of its own, so that what several paths
have in common is copied for each.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.utils.deterministic
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from peftkit.kernels.tree_plan import TreePlan

LARGEST = 256
"""The largest size of a head that the kernel takes."""
PRESENT = {"scale", "window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)
"""Whether this version of torch has what is asked of it."""


def possible(q: Tensor, v: Tensor, plan: TreePlan, first: int) -> bool:
    """Say whether the kernel can do it: half precision on CUDA, no window over keys in front."""
    fits = q.shape[-1] == v.shape[-1] <= LARGEST and q.shape[-1] % 8 == 0
    half = q.dtype in (torch.bfloat16, torch.float16)
    return PRESENT and q.device.type == "cuda" and fits and half and (plan.window is None or not first)


def attend(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, first: int, scale: float) -> Tensor:
    """Return y [N, heads, size] of q [heads, N, size], the same bits each time in both passes.

    k and v are [groups, first + N or first, size]: each token sees the `first` keys and those of its path.
    """
    text = k.shape[1] > first
    edges = plan.edges(first, text)
    keys, values = (_flat(x if edges.index is None else _Copies.apply(x, edges.index)) for x in (k, v))
    # A window of w keys is the query's own and w - 1 before it.
    window = (-1 if plan.window is None else plan.window - 1, 0) if text else (-1, -1)
    given = _flat(q), keys, values, edges.queries, edges.keys, *edges.longest
    y = cast(Tensor, varlen_attn(*given, scale=scale, window_size=window, enable_gqa=True))
    if y.grad_fn is not None:
        during = ExitStack()
        y.grad_fn.register_prehook(lambda _: during.enter_context(repeatable()))
        y.grad_fn.register_hook(lambda *_: during.close())
    return y


class _Copies(torch.autograd.Function):
    """Rows `index` [K] of x [groups, keys, size]; what comes to the copies of one is added up in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        total = torch.zeros(ctx.shape, dtype=torch.float32, device=grads[0].device)
        return add_rows(total, index, grads[0]).to(grads[0].dtype), None


def add_rows(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Add rows [groups, K, size] to those `index` [K] of x [groups, keys, size] in place, in one order each time."""
    with repeatable() if x.is_cuda else nullcontext():
        return x.index_add_(1, index, rows.to(x.dtype))


def _flat(x: Tensor) -> Tensor:
    """Return x [heads, N, size] as [N, heads, size] whose last dimension is dense."""
    x = x.transpose(0, 1)
    return x if x.stride(-1) == 1 else x.contiguous()


@contextmanager
def repeatable() -> Iterator[None]:
    """Ask torch's kernels for the same bits each time, as far as they can."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    filled, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filled
