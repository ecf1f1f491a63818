"""Attention along a tree block by block: each is a slice of the flat tokens, so that nothing is gathered or padded.

A processor core does more for the many small operations of this than for the copies that batching them needs; a GPU
does not (`peftkit.kernels.tree_attention`). What is kept for the backward pass is the logarithm of each softmax's sum.
Plain products: what the fused kernel cannot do (`peftkit.kernels.fused_attention`), such as capped scores, runs here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peftkit.kernels.tree import Block


@dataclass(frozen=True)
class Span:
    """One block: its queries as a slice; its keys as a slice where they follow each other, else as an index."""

    queries: slice
    keys: slice | Tensor
    """Positions among the flat tokens."""
    mask: Tensor
    """[Lq, K or Lq] in fp32, added to the last scores of each query: 0 or -inf."""
    windowed: bool = False
    """Whether a window hides keys that come before."""


def spans(blocks: Sequence[Block], window: int | None) -> list[Span]:
    """Return the spans of a tree's blocks; masks of one shape are made once."""
    made: dict[tuple[int, int], Tensor] = {}
    found = []
    for block in blocks:
        length, count = block.length, len(block.keys)
        windowed = window is not None and count > window
        shape = (length, count if windowed else length)
        if shape not in made:
            made[shape] = mask_of(*shape, window)
        keys: slice | Tensor = torch.from_numpy(block.keys)
        if block.keys[-1] - block.keys[0] == count - 1:
            keys = slice(int(block.keys[0]), int(block.keys[-1]) + 1)
        found.append(Span(slice(block.start, block.start + length), keys, made[shape], windowed))
    return found


def mask_of(length: int, count: int, window: int | None) -> Tensor:
    """Return what is added to the scores [length, count] of the last tokens of a path, in fp32: 0 or -inf."""
    at, keys = torch.arange(count - length, count)[:, None], torch.arange(count)
    hidden = keys > at
    if window is not None:
        hidden |= keys <= at - window
    return torch.zeros(length, count).masked_fill_(hidden, -torch.inf)


def forward(
    q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], first: int, scale: float, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Return y [heads, N, size] and the logarithms of the sums [heads, N, 1] of q [heads, N, size].

    k and v are [groups, first + N or first, size]: each token sees the `first` keys and those of its path.
    """
    groups, text = k.shape[0], k.shape[1] > first
    y = q.new_empty(*q.shape[:2], v.shape[2])
    totals = q.new_empty(*q.shape[:2], 1, dtype=_wide(q))
    for span in spans:
        scores, _ = _scores(_rows(q, span.queries, groups), _keys(k, span, first), span, text, scale, cap)
        top = scores.amax(-1, keepdim=True)
        total = scores.sub_(top).exp_().sum(-1, keepdim=True)
        part = (scores.to(v.dtype) @ _keys(v, span, first)).div_(total)
        _put(y, span.queries, part)
        _put(totals, span.queries, total.log_().add_(top))
    return y, totals


def backward(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    totals: Tensor,
    spans: Sequence[Span],
    first: int,
    scale: float,
    cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v from that of y, all in the shapes of `forward`."""
    groups, text = k.shape[0], k.shape[1] > first
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    # [heads, N, 1]: what the softmax takes back from each score of a query.
    means = (dy * y).sum(-1, keepdim=True, dtype=_wide(q))
    for span in spans:
        queries, keys, values = _rows(q, span.queries, groups), _keys(k, span, first), _keys(v, span, first)
        given = _rows(dy, span.queries, groups)
        p, slope = _scores(queries, keys, span, text, scale, cap)
        p.sub_(_rows(totals, span.queries, groups)).exp_()
        _add(dv, span, first, p.to(v.dtype).transpose(-1, -2) @ given)
        ds = (given @ values.transpose(-1, -2)).to(p.dtype).sub_(_rows(means, span.queries, groups)).mul_(p)
        ds = (ds if slope is None else ds.mul_(slope)).mul_(scale).to(q.dtype)
        _put(dq, span.queries, ds @ keys)
        _add(dk, span, first, ds.transpose(-1, -2) @ queries)
    return dq, dk, dv


def _scores(
    q: Tensor, k: Tensor, span: Span, text: bool, scale: float, cap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return scores [groups, heads / groups * Lq, K] in fp32 and, with a cap, their slope; -inf where hidden."""
    scores = (q @ k.transpose(-1, -2)).to(_wide(q)).mul_(scale)
    slope = None
    if cap is not None:
        bent = scores.div_(cap).tanh_()
        scores, slope = bent * cap, 1 - bent.square()
    if text:
        length, count = span.mask.shape
        scores.view(len(scores), -1, length, scores.shape[2])[..., scores.shape[2] - count :] += span.mask
    return scores, slope


def _rows(x: Tensor, where: slice, groups: int) -> Tensor:
    """Return rows of x [heads, N, size] as [groups, heads / groups * rows, size]."""
    part = x[:, where]
    return part if x.shape[0] == groups else part.reshape(groups, -1, x.shape[2])


def _keys(x: Tensor, span: Span, first: int) -> Tensor:
    """Return the rows of keys or values [groups, first + K or first, size] that a block sees."""
    if x.shape[1] == first:
        return x
    own = x[:, first:] if first else x
    part = own[:, span.keys] if isinstance(span.keys, slice) else own.index_select(1, span.keys)
    return torch.cat([x[:, :first], part], dim=1) if first else part


def _put(x: Tensor, where: slice, part: Tensor) -> None:
    x[:, where] = part.reshape(x.shape[0], -1, x.shape[2])


def _add(x: Tensor, span: Span, first: int, part: Tensor) -> None:
    """Add what came to the keys of a block."""
    if first:
        x[:, :first] += part[:, :first]
    if x.shape[1] == first:
        return
    own, mine = x[:, first:], part[:, first:]
    if isinstance(span.keys, slice):
        own[:, span.keys] += mine
    else:
        own.index_add_(1, span.keys, mine)


def _wide(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)
