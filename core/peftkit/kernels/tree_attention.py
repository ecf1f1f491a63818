"""Attention over the flat tokens of a tree: products of blocks, forward and backward, with nothing kept but sums.

Nothing is masked over all pairs of tokens or padded to the longest row. A processor core goes block by block, through
torch's fused kernel where that can do it, and a GPU through its kernel for rows of many lengths; what those cannot do
goes in blocks of like shape, batched. What is kept for the backward
pass is the logarithm of each softmax's sum; the scores are computed again.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from peftkit.kernels import block_attention, fused_attention, varlen_attention
from peftkit.kernels.tree_plan import Bucket, Plan


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    *,
    first: int = 0,
    scale: float,
    cap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return y [1, N, heads, size] of q [1, heads, N, size], and k and v [1, groups, first + N or first, size].

    Each token sees the `first` keys, which stand in front, and those of its own path; `cap` bounds scores s to
    cap tanh(s / cap). Dropout of probabilities goes by torch's own derivative.
    """
    # Under autocast rotary positions leave queries and keys in fp32, and values are in what is computed in.
    q, k = q.to(v.dtype), k.to(v.dtype)
    if dropout:
        return _forward(q[0], k[0], v[0], plan, first, scale, cap, dropout)[0].unsqueeze(0)
    # Measured on a processor core: of the time of buckets the fused kernel takes 0.4 in fp32 and 0.6 in bf16, and
    # blocks of plain products 0.7 in fp32, in bf16 as long or longer.
    if fused_attention.possible(q, v, cap):
        return cast(Tensor, _Kernel.apply(fused_attention, q[0], k[0], v[0], plan, first, scale)).unsqueeze(0)
    if varlen_attention.possible(q, v, plan, first, cap):
        return cast(Tensor, _Kernel.apply(varlen_attention, q[0], k[0], v[0], plan, first, scale)).unsqueeze(0)
    function = _Blocks if q.device.type == "cpu" and q.dtype != torch.bfloat16 else _Attention
    return cast(Tensor, function.apply(q[0], k[0], v[0], plan, first, scale, cap)).unsqueeze(0)


class _Kernel(torch.autograd.Function):
    """Attention through one of torch's kernels, a module that has both passes."""

    @staticmethod
    def forward(
        ctx: Any, kernel: ModuleType, q: Tensor, k: Tensor, v: Tensor, plan: Plan, first: int, scale: float
    ) -> Tensor:
        y, totals = kernel.forward(q, k, v, plan, first, scale)
        ctx.save_for_backward(q, k, v, y, totals)
        ctx.kernel, ctx.plan, ctx.first, ctx.scale = kernel, plan, first, scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, totals = ctx.saved_tensors
        found = ctx.kernel.backward(grads[0], q, k, v, y, totals, ctx.plan, ctx.first, ctx.scale)
        return None, *found, None, None, None


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, first: int, scale: float, cap: float | None
    ) -> Tensor:
        y, totals = block_attention.forward(q, k, v, plan.spans, first, scale, cap)
        ctx.save_for_backward(q, k, v, y, totals)
        ctx.plan, ctx.first, ctx.scale, ctx.cap = plan, first, scale, cap
        return y.transpose(0, 1).clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, totals = ctx.saved_tensors
        dy, spans = grads[0].transpose(0, 1), ctx.plan.spans
        found = block_attention.backward(dy, q, k, v, y, totals, spans, ctx.first, ctx.scale, ctx.cap)
        return *found, None, None, None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, first: int, scale: float, cap: float | None
    ) -> Tensor:
        y, sums = _forward(q, k, v, plan, first, scale, cap, 0.0)
        ctx.save_for_backward(q, k, v, y, *sums)
        ctx.plan, ctx.first, ctx.scale, ctx.cap = plan, first, scale, cap
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, *sums = ctx.saved_tensors
        plan, first, scale, cap = ctx.plan, ctx.first, ctx.scale, ctx.cap
        dy = grads[0].transpose(0, 1)
        # [heads, N, 1]: what the softmax takes back from each score of a query.
        mean = (dy * y.transpose(0, 1)).sum(-1, keepdim=True, dtype=_wide(q))
        parts = []
        text = k.shape[1] > first
        for bucket, total in zip(plan.buckets, sums, strict=True):
            queries, keys, values = (
                _gather(q, bucket.queries, k.shape[0]),
                _rows(k, bucket, first),
                _rows(v, bucket, first),
            )
            scores, slope = _scores(queries, keys, bucket, first, text, scale, cap)
            p = scores.sub_(total).exp_()
            if bucket.real is not None:
                _split(p, bucket).mul_(bucket.real)
            dout = _gather(dy, bucket.queries, k.shape[0])
            dv = p.to(v.dtype).transpose(-1, -2) @ dout
            ds = (dout @ values.transpose(-1, -2)).to(p.dtype).sub_(_gather(mean, bucket.queries, k.shape[0])).mul_(p)
            if slope is not None:
                ds.mul_(slope)
            ds = ds.mul_(scale).to(q.dtype)
            parts.append((ds @ keys, ds.transpose(-1, -2) @ queries, dv))
        dq = _return(parts, 0, plan, q)
        dk, dv = (_spread([part[which] for part in parts], plan, first, k) for which in (1, 2))
        return dq, dk, dv, None, None, None, None


def _forward(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, first: int, scale: float, cap: float | None, dropout: float
) -> tuple[Tensor, list[Tensor]]:
    """Return y [N, heads, size], and of each bucket the logarithms of the sums [groups, S, queries, 1] in fp32."""
    parts, sums = [], []
    text = k.shape[1] > first
    for bucket in plan.buckets:
        queries, keys, values = _gather(q, bucket.queries, k.shape[0]), _rows(k, bucket, first), _rows(v, bucket, first)
        scores, _ = _scores(queries, keys, bucket, first, text, scale, cap)
        top = scores.detach().amax(-1, keepdim=True)
        p = scores.sub_(top).exp_()
        total = p.sum(-1, keepdim=True)
        sums.append(total.detach().log().add_(top))
        if dropout:
            p = torch.nn.functional.dropout(p / total, dropout)
            parts.append((p.to(v.dtype) @ values,))
        else:
            parts.append(((p.to(v.dtype) @ values).div_(total),))
    y = _return(parts, 0, plan, q, size=v.shape[2])
    return y.transpose(0, 1).clone(memory_format=torch.contiguous_format), sums


def _scores(
    q: Tensor, k: Tensor, bucket: Bucket, first: int, text: bool, scale: float, cap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return the scores [groups, S, queries, keys] in fp32 and, with a cap, their slope; -inf where hidden."""
    scores = (q @ k.transpose(-1, -2)).to(_wide(q)) * scale
    slope = None
    if cap is not None:
        bent = torch.tanh(scores / cap)
        scores, slope = bent * cap, 1 - bent.square()
    if text:
        _split(scores, bucket)[..., first:].masked_fill_(bucket.hidden, -torch.inf)
    return scores, slope


def _wide(like: Tensor) -> torch.dtype:
    """Return what scores and sums are held in: fp32, or fp64 for fp64."""
    return torch.promote_types(like.dtype, torch.float32)


def _split(scores: Tensor, bucket: Bucket) -> Tensor:
    """View scores as [groups, S, heads / groups, queries, keys]."""
    groups, blocks, rows, keys = scores.shape
    length = bucket.queries.shape[1]
    return scores.view(groups, blocks, rows // length, length, keys)


def _gather(x: Tensor, index: Tensor, groups: int) -> Tensor:
    """Return the rows of x [heads, N, size] as [groups, S, heads / groups * queries, size]."""
    blocks, length = index.shape
    rows = x.index_select(1, index.flatten())
    if x.shape[0] == groups:
        return rows.view(groups, blocks, length, -1)
    rows = rows.view(groups, x.shape[0] // groups, blocks, length, -1)
    return rows.transpose(1, 2).reshape(groups, blocks, -1, x.shape[2])


def _rows(x: Tensor, bucket: Bucket, first: int) -> Tensor:
    """Return keys or values [groups, S, first + keys, size] of x [groups, first + N or first, size]."""
    blocks = len(bucket.keys)
    front = x[:, None, :first].expand(-1, blocks, -1, -1)
    if x.shape[1] == first:
        return front
    mine = x.index_select(1, (bucket.keys + first if first else bucket.keys).flatten())
    mine = mine.view(x.shape[0], blocks, -1, x.shape[2])
    return torch.cat([front, mine], dim=2) if first else mine


def _return(parts: list[Any], which: int, plan: Plan, like: Tensor, size: int | None = None) -> Tensor:
    """Bring what is there for each query back to the order of the tokens: [heads, N, size]."""
    heads, size = like.shape[0], size or like.shape[2]
    flat = []
    for bucket, part in zip(plan.buckets, parts, strict=True):
        groups, blocks, length = part[which].shape[0], *bucket.queries.shape
        rows = part[which].view(groups, blocks, heads // groups, length, size).transpose(1, 2)
        flat.append(rows.reshape(heads, blocks * length, size))
    whole = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
    return whole.index_select(1, plan.answers)


def _spread(parts: list[Tensor], plan: Plan, first: int, like: Tensor) -> Tensor:
    """Add up what came to each key: [groups, first + N or first, size]."""
    groups, count, size = like.shape
    front = [part[:, :, :first].sum(1, dtype=_wide(like)) for part in parts] if first else []
    head = [torch.stack(front).sum(0).to(like.dtype)] if front else []
    if count == first:
        return head[0]
    mine = [part[:, :, first:].reshape(groups, -1, size) for part in parts]
    whole = mine[0] if len(mine) == 1 else torch.cat(mine, dim=1)
    if plan.origins is not None:
        text = whole.index_select(1, plan.origins)
    else:
        index = torch.cat([bucket.keys.flatten() for bucket in plan.buckets])
        text = torch.zeros(groups, count - first, size, dtype=_wide(like), device=like.device)
        text = text.index_add_(1, index, whole.to(text.dtype)).to(like.dtype)
    return torch.cat([*head, text], dim=1) if head else text
