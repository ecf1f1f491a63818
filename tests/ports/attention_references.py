"""Attention with a prefix as it is written down, for models whose layers call transformers' attention functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import AttentionInterface

NAME = "written-out"
IDS = torch.arange(10, 10 + 2 * 21).reshape(2, 21)
MASK = torch.ones_like(IDS)
MASK[1, 15:] = 0
REAL = MASK.bool()


@contextmanager
def written_out(model: Any, prefixes: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Have a bare model attend to `prefixes` too: keys and values [length, groups * size] by the path of the attention.

    Queries see the text as the rules of the layer say: those before them, in the window, chosen by an indexer.
    """
    given = {id(model.get_submodule(path)): pair for path, pair in prefixes.items()}

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **asked: Any
    ) -> tuple[Tensor, None]:
        front = [
            part.to(like.dtype)
            .view(len(part), like.shape[1], like.shape[3])
            .transpose(0, 1)
            .expand(len(like), -1, -1, -1)
            for part, like in zip(given.get(id(module), (key[0, 0, :0], value[0, 0, :0])), (key, value), strict=True)
            if len(part)
        ]
        count = front[0].shape[2] if front else 0
        keys, values = (
            torch.cat([*front[place : place + 1], x], 2).repeat_interleave(query.shape[1] // x.shape[1], 1)
            for place, x in enumerate((key, value))
        )
        scores = (query @ keys.transpose(-1, -2)).double() * asked["scaling"]
        if asked.get("softcap") is not None:
            scores = asked["softcap"] * torch.tanh(scores / asked["softcap"])
        if asked.get("position_bias") is not None:
            scores = torch.cat([scores[..., :count], scores[..., count:] + asked["position_bias"]], -1)
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            scores = torch.cat([scores[..., :count], scores[..., count:] + attention_mask], -1)
        scores = scores.masked_fill(~seen(query, key, attention_mask, count, asked), -torch.inf)
        sink = asked.get("sinks")
        if asked.get("s_aux") is not None:
            sink = asked["s_aux"].view(1, -1, 1, 1).expand(len(query), -1, query.shape[2], -1)
        if sink is not None:
            scores = torch.cat([scores, sink.double()], -1)
        weights = scores.softmax(-1)[..., : keys.shape[2]].nan_to_num()  # queries of padding may see nothing
        return (weights.to(values.dtype) @ values).transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attend)
    before, model.config._attn_implementation = model.config._attn_implementation, NAME
    # Some put together masks of their own, of the kind that their own products take.
    masks = eager_mask if before == "eager" else sdpa_mask
    AttentionMaskInterface.register(NAME, lambda *args, **named: masks(*args, **{**named, **ALWAYS}))
    try:
        yield
    finally:
        model.config._attn_implementation = before


def in_heads(part: Tensor, like: Tensor) -> Tensor:
    """Return a part of a prefix, [length, groups * size], as keys or values are, [B, groups, length, size]."""
    heads = part.to(like.dtype).view(len(part), like.shape[1], like.shape[3]).transpose(0, 1)
    return heads.expand(len(like), -1, -1, -1)


ALWAYS = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}


def seen(query: Tensor, key: Tensor, mask: Tensor | None, count: int, asked: Mapping[str, Any]) -> Tensor:
    """Say which queries [B, 1, T] see which keys [count + S]: all of the prefix."""
    tokens, keys = query.shape[2], key.shape[2]
    rows = torch.ones(len(query), 1, tokens, keys, dtype=torch.bool)
    if keys == tokens:
        at = torch.arange(tokens)
        rows = rows & (at[:, None] >= at)
        window = asked.get("sliding_window")
        rows = rows if window is None else rows & (at[:, None] - at < window)
    if mask is not None and mask.dtype == torch.bool:
        rows = rows & mask
    if asked.get("indices") is not None:
        rows = (
            rows & torch.zeros(rows[:, 0].shape, dtype=torch.bool).scatter(-1, asked["indices"].long(), True)[:, None]
        )
    return torch.cat([rows.new_ones(*rows.shape[:3], count), rows], -1)
