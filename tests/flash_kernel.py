"""What torch's public attention for rows of many lengths computes on a GPU, in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """Attend within each run of q [N, heads, size] and k and v [K, groups, size]; its last query sees all its keys."""
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    assert (int(cu_seq_q[-1]), int(cu_seq_k[-1])) == (len(query), len(key))
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa or query.shape[1] == key.shape[1]
    edges = cu_seq_q, cu_seq_k, *window_size, scale
    return Repeatable.apply(query, key, value, *edges)  # type: ignore[no-any-return]


class Repeatable(torch.autograd.Function):
    """A function whose backward pass is to be asked for the same bits each time."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *edges: Any) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.edges = edges
        return attend(q, k, v, *edges)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        assert torch.are_deterministic_algorithms_enabled()
        with torch.enable_grad():
            given = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            return *torch.autograd.grad(attend(*given, *ctx.edges), given, grads[0]), *[None] * len(ctx.edges)


def attend(
    q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, left: int, right: int, scale: float
) -> Tensor:
    """Return y [N, heads, size]; -1 is no bound of how far a query sees to the left or right."""
    repeats, parts = q.shape[1] // k.shape[1], []
    for a, b, c, d in zip(
        *(edge.tolist() for edges in (queries, keys) for edge in (edges[:-1], edges[1:])), strict=True
    ):
        at, key = torch.arange(b - a)[:, None] + (d - c) - (b - a), torch.arange(d - c)
        hidden = ((key > at + right) & (right >= 0)) | ((key < at - left) & (left >= 0))
        scores = torch.einsum("qhs,khs->hqk", q[a:b], k[c:d].repeat_interleave(repeats, 1)) * scale
        p = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        parts.append(torch.einsum("hqk,khs->qhs", p, v[c:d].repeat_interleave(repeats, 1)))
    return torch.cat(parts)
