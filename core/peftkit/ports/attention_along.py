"""Attention along trees, through transformers' registry and the adapters that sit inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.kernels.tree import Tree, cut
from peftkit.kernels.tree_attention import attend
from peftkit.kernels.tree_plan import plan_of
from peftkit.ports.attention import Attend, chain, configs, input_as, inputs, register, spans_of, stop
from peftkit.ports.context import LINK, Context, context_of
from peftkit.ports.seat import Seat

TREE = "peftkit-tree"
KNOWN = {"scaling", "dropout", "sliding_window", "softcap", "s_aux"}
"""What attention functions are given and the tree's can do; other things that are set are refused."""
IDLE = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "cache_position", "is_causal"}
IDLE |= {"position_embeddings", "return_dict", "output_router_logits", "logits_to_keep"}
IDLE |= {"seq_idx", "cu_seq_lens_q", "cu_seq_lens_k"}


@torch.compiler.disable
def attention_along(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **rest: Any
) -> tuple[Tensor, None]:
    """Attend as `attention` does, along the trees, which are others in each step: no compiler looks inside."""
    stop(module, key, value)
    _check(attention_mask, query.shape[2], rest)
    context: Context = module.__dict__[LINK]
    tree, *others = context.trees
    if context.heard is not None:
        context.heard(module, query, key, value, rest)
    if not others:
        call = _attend_along(module, tree, key, rest)
        call = chain(module, context.names, call) if isinstance(module, Seat) else call
        return call(query, key, value, attention_mask), None
    sizes = [len(tree.ids) for tree in context.trees]
    names = context.routing.names if context.routing is not None else [None] * len(sizes)
    portions = query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), attention_mask.split(sizes, 3)
    read = [None] * len(sizes) if context.routing is None else inputs(module, context.routing, 1)
    parts = []
    for tree, name, x, q, k, v, mask in zip(context.trees, names, read, *portions, strict=True):
        call = _attend_along(module, tree, k, rest)
        with input_as(module, x):
            call = chain(module, (name,), call) if isinstance(module, Seat) else call
            parts.append(call(q, k, v, mask))
    return torch.cat(parts, 1), None


def _attend_along(module: nn.Module, tree: Tree, key: Tensor, rest: dict[str, Any]) -> Attend:
    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        spans = spans_of(module)
        seen = tree if spans is None else cut(tree, spans.length, spans.first)
        return _along(seen, q, k, v, 0 if k is key else _front(tree, k, mask), **rest)

    return call


@contextmanager
def along(model: nn.Module, *trees: Tree) -> Iterator[None]:
    """Run the model inside on the flat tokens of `trees`, forward and backward; its attention sees paths alone.

    Of several trees each has the tokens of one portion of the routing.
    """
    context, before = context_of(model), [(config, config._attn_implementation) for config in configs(model)]
    for config, _ in before:
        config._attn_implementation = TREE
    context.trees = trees
    try:
        yield
    finally:
        context.trees = ()
        context.tape.clear()
        for config, implementation in before:
            config._attn_implementation = implementation


def _front(tree: Tree, k: Tensor, mask: Tensor) -> int:
    """Return how many of the keys [1, groups, S, size] stand in front: `mask` [1, 1, 1, S] is True for those.

    The text's own keys are the last ones, all of them or none.
    """
    count, tokens = k.shape[2], len(tree.ids)
    has_text = count >= tokens and bool((~mask[..., -1]).any())
    return count - tokens if has_text else count


def _check(mask: Tensor | None, tokens: int, asked: Mapping[str, Any]) -> None:
    """Raise PeftkitError for what attention along a tree cannot do."""
    unsupported = [key for key, value in asked.items() if value is not None and key not in KNOWN | IDLE]
    if asked.get("softcap") is not None and asked.get("s_aux") is not None:
        unsupported.append("softcap with s_aux")
    if mask is None or mask.dtype != torch.bool or mask.shape != (1, 1, 1, tokens):
        unsupported.append("attention_mask")
    if unsupported:
        raise PeftkitError(f"attention along shared paths does not know what {', '.join(unsupported)} asks for.")


def _along(tree: Tree, q: Tensor, k: Tensor, v: Tensor, first: int, **asked: Any) -> Tensor:
    """Attend along the tree, and to the `first` keys, which every token sees."""
    return attend(
        q,
        k,
        v,
        plan_of(tree, asked.get("sliding_window")),
        first=first,
        scale=asked.get("scaling") or q.shape[-1] ** -0.5,
        cap=asked.get("softcap"),
        dropout=asked.get("dropout") or 0.0,
        sink=asked.get("s_aux"),
    )


def packed(tree: Tree, q: Tensor, k: Tensor, v: Tensor, **asked: Any) -> Tensor:
    """Return y [1, N, heads, size] of the flat tokens of a tree, as `attention_along` does without adapters."""
    return _along(tree, q, k, v, 0, **asked)


def tree_mask(*, q_length: int, device: torch.device, **rest: Any) -> Tensor:
    """Return the mask [1, 1, 1, N] of no key in front; what a token sees of the others is in the tree."""
    return torch.zeros(1, 1, 1, q_length, dtype=torch.bool, device=device)


register(TREE, attention_along, tree_mask)
