"""Attention over the flat tokens of a tree: nothing is masked over all pairs of tokens or padded to the longest row.

It goes through torch's fused kernel for processors, or on a GPU through that for rows of many lengths; what neither
can do is plain products here. Of the scores nothing is kept for the backward pass, which computes them again.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.kernels import fused_attention, varlen_attention
from peftkit.kernels.tree_plan import Bucket, TreePlan


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: TreePlan,
    *,
    first: int = 0,
    scale: float,
    cap: float | None = None,
    dropout: float = 0.0,
    sink: Tensor | None = None,
) -> Tensor:
    """Return y [1, N, heads, size] of q [1, heads, N, size], and k and v [1, groups, first + N or first, size].

    Each token sees the `first` keys, which stand in front, and those of its own path; `cap` bounds scores s to
    cap tanh(s / cap), and `dropout` is of probabilities. Besides it sees a key of the value zero whose score is the
    `sink` [heads] of its head; that goes without `cap`.
    """
    # Under autocast rotary positions leave queries and keys in fp32, and values are in what is computed in.
    q, k = q.to(v.dtype), k.to(v.dtype)
    if sink is not None:
        q, k, given = _with_sink(q, k, sink / scale)
        wide = F.pad(v, (0, given if q.shape[-1] == v.shape[-1] + given else 0, 1, 0))
        return attend(q, k, wide, plan, first=first + 1, scale=scale, dropout=dropout)[..., : v.shape[-1]]
    given = q[0], k[0], v[0], plan, first
    if cap is None and not dropout:
        if fused_attention.possible(q, v):
            return fused_attention.attend(*given, scale).unsqueeze(0)
        if varlen_attention.possible(q, v, plan, first):
            return varlen_attention.attend(*given, scale).unsqueeze(0)
    return cast(Tensor, Products.apply(*given, Softmax(scale, cap, dropout))).unsqueeze(0)


def _with_sink(q: Tensor, k: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return q and k in more dimensions, how many those are, and a key in front whose products are `scores` [heads].

    The queries of one group's heads are told apart by the dimensions that are added: each has a one in its own.
    """
    groups, heads = k.shape[1], q.shape[1] // k.shape[1]
    added = heads + -(k.shape[-1] + heads) % 8  # kernels want sizes that 8 divides
    own = torch.eye(heads, added, dtype=q.dtype, device=q.device).repeat(groups, 1)
    q = torch.cat([q, own[None, :, None].expand(len(q), -1, q.shape[2], -1)], -1)
    key = F.pad(scores.to(k.dtype).view(1, groups, 1, heads), (k.shape[-1], added - heads))
    return q, torch.cat([key, F.pad(k, (0, added))], 2), added


class Softmax(NamedTuple):
    """How products of queries and keys become probabilities."""

    scale: float
    cap: float | None = None
    dropout: float = 0.0

    def __call__(self, q: Tensor, k: Tensor, bucket: Bucket, generator: torch.Generator | None) -> Tensor:
        """Return [groups, S, heads / groups * Lq, K] in the dtype of q; computed in fp32 at least."""
        scores, factor = (q @ k.transpose(-1, -2)).to(_wide(q)), self.scale
        if self.cap is not None:
            scores, factor = (scores * (self.scale / self.cap)).tanh(), self.cap
        if bucket.mask is None:
            scores = scores * factor
        else:
            split = scores.view(*scores.shape[:2], -1, *bucket.mask.shape[2:])
            scores = torch.add(bucket.mask, split, alpha=factor).view(scores.shape)
        p = scores.softmax(-1)
        if self.dropout:
            kept = torch.empty_like(p).bernoulli_(1 - self.dropout, generator=generator)
            p = p * kept / (1 - self.dropout)
        return p.to(q.dtype)


class Products(torch.autograd.Function):
    """Plain products, bucket by bucket; padded queries read and write one more row, which is dropped."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, first: int, softmax: Softmax) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.buckets, ctx.softmax = plan.buckets(first, k.shape[1] > first), softmax
        ctx.seed = int(torch.randint(2**62, ())) if softmax.dropout else None
        generator, groups = _generator(ctx.seed, q), len(k)
        q = _longer(q)
        y = q.new_empty(*q.shape[:2], v.shape[2])
        for bucket in ctx.buckets:
            p = softmax(_rows(q, bucket.queries, groups), _rows(k, bucket.keys, groups), bucket, generator)
            _put(y, bucket.queries, p @ _rows(v, bucket.keys, groups))
        return y[:, :-1].transpose(0, 1).clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        generator, groups = _generator(ctx.seed, q), len(k)
        q, dy = _longer(q), _longer(grads[0].transpose(0, 1))
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(x, dtype=_wide(x)) for x in (k, v))
        for bucket in ctx.buckets:
            queries = _rows(q, bucket.queries, groups).requires_grad_()
            keys, values = (_rows(x, bucket.keys, groups) for x in (k, v))
            of_y = _rows(dy, bucket.queries, groups)
            with torch.enable_grad():
                p = ctx.softmax(queries, keys.requires_grad_(), bucket, generator)
            of_q, of_k = torch.autograd.grad(p, (queries, keys), of_y @ values.transpose(-1, -2))
            _put(dq, bucket.queries, of_q)
            for x, part in ((dk, of_k), (dv, p.detach().transpose(-1, -2) @ of_y)):
                varlen_attention.add_rows(x, bucket.keys.flatten(), part.flatten(1, 2))
        return dq[:, :-1], dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _generator(seed: int | None, like: Tensor) -> torch.Generator | None:
    return None if seed is None else torch.Generator(like.device).manual_seed(seed)


def _wide(like: Tensor) -> torch.dtype:
    """Return what scores and sums are held in: fp32, or fp64 for fp64."""
    return torch.promote_types(like.dtype, torch.float32)


def _longer(x: Tensor) -> Tensor:
    """Return x [heads, N, size] with a row of zeros behind."""
    return F.pad(x, (0, 0, 0, 1))


def _rows(x: Tensor, index: Tensor, groups: int) -> Tensor:
    """Return the rows of x [heads, N, size] as [groups, S, heads / groups * L, size]."""
    rows = x.index_select(1, index.flatten()).view(groups, -1, *index.shape, x.shape[2])
    return rows.transpose(1, 2).reshape(groups, len(index), -1, x.shape[2])


def _put(x: Tensor, index: Tensor, part: Tensor) -> None:
    """Write what `_rows` has the shape of to rows of x [heads, N, size]."""
    rows = part.view(len(part), len(index), -1, index.shape[1], x.shape[2]).transpose(1, 2)
    x.index_copy_(1, index.flatten(), rows.reshape(len(x), -1, x.shape[2]))
