"""What torch's flash kernel for rows of many lengths computes on a GPU, in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Tensor,
    keys: Tensor,
    longest_query: int,
    longest_key: int,
    dropout: float,
    causal: bool,
    debug: bool,
    *,
    scale: float,
    window_size_left: int = -1,
    window_size_right: int = -1,
) -> tuple[Tensor, Tensor]:
    """Attend within each run of q [N, heads, size] and k and v [K, groups, size]; its last query sees all its keys."""
    assert longest_query >= int(queries.diff().max())
    assert longest_key >= int(keys.diff().max())
    assert (int(queries[-1]), int(keys[-1])) == (len(q), len(k))
    assert queries.dtype == keys.dtype == torch.int32
    assert not dropout
    assert not debug
    repeats, parts = q.shape[1] // k.shape[1], []
    for a, b, c, d in zip(
        *(edge.tolist() for edges in (queries, keys) for edge in (edges[:-1], edges[1:])), strict=True
    ):
        at, key = torch.arange(b - a)[:, None] + (d - c) - (b - a), torch.arange(d - c)
        hidden = (key > at if causal else key < 0) | ((key < at - window_size_left) & (window_size_left >= 0))
        scores = torch.einsum("qhs,khs->hqk", q[a:b], k[c:d].repeat_interleave(repeats, 1)) * scale
        p = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        parts.append(torch.einsum("hqk,khs->qhs", p, v[c:d].repeat_interleave(repeats, 1)))
    return torch.cat(parts), torch.zeros(q.shape[1], len(q))


def backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    totals: Tensor,
    queries: Tensor,
    keys: Tensor,
    longest_query: int,
    longest_key: int,
    dropout: float,
    causal: bool,
    seed: Tensor,
    unused: Tensor,
    **told: Any,
) -> tuple[Tensor, ...]:
    """Return the gradients of q, k and v, which are asked for the same bits each time."""
    assert totals.shape == (q.shape[1], len(q))
    assert torch.are_deterministic_algorithms_enabled()
    edges = queries, keys, longest_query, longest_key
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        y, _ = forward(q, k, v, *edges, dropout, causal, False, **told)
        return torch.autograd.grad(y, (q, k, v), dy)
