"""The port of attention: an adapter around the attention of one layer, given its queries, keys and values.

It goes through transformers' registry of attention functions, so that it works with grouped keys and values, rotary
positions, caches, beams and gradient checkpointing, and touches no cache. Families without that registry are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from peftkit.errors import PeftkitError
from peftkit.kernels.tree import Tree
from peftkit.kernels.tree_attention import attend as attend_along
from peftkit.kernels.tree_plan import plan_of
from peftkit.ports.adapter import Adapter
from peftkit.ports.seat import INPUT, Seat, Switch

NAME = "peftkit"
TREE = "peftkit-tree"
KERNEL = "sdpa"
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class AttentionAdapter(Adapter):
    """An adapter inside the attention of its site: `forward(attend, q, k, v, mask) -> y`.

    q [B, heads, T, size]; k and v [B, groups, S, size] after rotary positions, those of the cache included; mask
    [B or 1, 1, T, S], True where a query may look; y [B, T, heads, size], as `attend(q, k, v, mask)` returns it. With
    `reads_input` the hidden states x [B, T, width] that the attention reads follow the mask.
    """

    inside: ClassVar[bool] = True

    def forward(  # type: ignore[override]
        self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *x: Tensor
    ) -> Tensor:
        """Compute the adapted attention."""
        raise TypeError(f"{type(self).__name__} does not define what it computes")


def listen(model: nn.Module, switch: Switch) -> None:
    """Have the model's attention run its active adapters, and its own function as it was while none is active."""
    config = cast(Any, model).config
    own = config._attn_implementation

    def choose() -> None:
        seats = (module for module in model.modules() if isinstance(module, Seat))
        wanted = any(inside(module, switch) for module in seats)
        config._attn_implementation = NAME if wanted else own

    switch.watchers.append(choose)


def inside(module: Seat, switch: Switch) -> list[AttentionAdapter]:
    """Return the active attention adapters of a module, innermost first."""
    return [cast(AttentionAdapter, adapter) for adapter in module.running(switch.names) if adapter.inside]


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **rest: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' registry asks it, through the adapters of `module`."""
    x = rest.pop(INPUT, None)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return ALL_ATTENTION_FUNCTIONS[KERNEL](module, q, k, v, mask, **rest)[0]

    if not isinstance(module, Seat):
        return attend(query, key, value, attention_mask), None
    rows = module.switch.rows
    if rows is None:
        return _chain(module, module.switch.active, attend, x)(query, key, value, attention_mask), None
    parts = []
    mask = attention_mask.expand(query.shape[0], -1, -1, -1)
    for name in dict.fromkeys(rows):
        index = torch.tensor([i for i, row in enumerate(rows) if row == name], device=query.device)
        mine = None if x is None else x[index]
        call = _chain(module, () if name is None else (name,), attend, mine)
        parts.append((index, call(query[index], key[index], value[index], mask[index])))
    order = torch.cat([index for index, _ in parts]).argsort()
    return torch.cat([part for _, part in parts]).index_select(0, order), None


@torch.compiler.disable
def attention_along(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **rest: Any
) -> tuple[Tensor, None]:
    """Attend as `attention` does, along the trees, which are others in each step: no compiler looks inside."""
    x = rest.pop(INPUT, None)
    tree, *others = STATE.trees
    if others:
        return _divide(module, query, key, value, attention_mask, x, rest), None
    call = _attend_along(tree, key, rest)
    call = _chain(module, module.switch.names, call, x) if isinstance(module, Seat) else call
    return call(query, key, value, attention_mask), None


def _divide(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, x: Tensor | None, rest: dict[str, Any]
) -> Tensor:
    """Attend along several trees, each with the adapters of its own span; nothing passes from one to another."""
    sizes = [len(tree.ids) for tree in STATE.trees]
    parts = []
    split = zip(q.split(sizes, 2), k.split(sizes, 2), v.split(sizes, 2), mask.split(sizes, 3), strict=True)
    inputs = [None] * len(sizes) if x is None else x.split(sizes, 1)
    for place, (tree, mine, given) in enumerate(zip(STATE.trees, split, inputs, strict=True)):
        call = _attend_along(tree, mine[1], rest)
        if isinstance(module, Seat):
            call = _chain(module, module.switch.names[place : place + 1], call, given)
        parts.append(call(*mine))
    return torch.cat(parts, 1)


def _attend_along(tree: Tree, key: Tensor, rest: dict[str, Any]) -> Attend:
    return lambda q, k, v, mask: _along(tree, q, k, v, 0 if k is key else _front(tree, k, mask), **rest)


def _chain(module: Seat, names: tuple[str, ...], attend: Attend, x: Tensor | None) -> Attend:
    for adapter in module.running(names):
        if adapter.inside:
            attend = _around(cast(AttentionAdapter, adapter), attend, (x,) if adapter.reads_input else ())
    return attend


def _around(adapter: AttentionAdapter, attend: Attend, more: tuple[Tensor | None, ...]) -> Attend:
    return lambda q, k, v, mask: adapter(attend, q, k, v, mask, *more)


def full_mask(*args: Any, **kwargs: Any) -> Tensor:
    """Return the mask [B or 1, 1, T, S] written out, also where the kernel could do without one."""
    return ALL_MASK_ATTENTION_FUNCTIONS[KERNEL](
        *args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    )


class State:
    """The trees along which attention runs now; a plain place, as backward passes have threads of their own."""

    trees: tuple[Tree, ...] = ()


STATE = State()
KNOWN = {"scaling", "dropout", "sliding_window", "softcap"}
"""What attention functions are told and the tree's can do; other things that are set are refused."""
IDLE = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "cache_position", "is_causal"}
IDLE |= {"position_embeddings", "return_dict", "output_router_logits", "logits_to_keep"}


@contextmanager
def along(model: nn.Module, *trees: Tree) -> Iterator[None]:
    """Run the model inside on the flat tokens of `trees`, forward and backward; its attention sees paths alone.

    Of several trees each has the tokens of one span of the model's switch.
    """
    config = cast(Any, model).config
    before, config._attn_implementation = config._attn_implementation, TREE
    STATE.trees = trees
    try:
        yield
    finally:
        STATE.trees = ()
        config._attn_implementation = before


def _front(tree: Tree, k: Tensor, mask: Tensor) -> int:
    """Return how many of the keys [1, groups, S, size] stand in front: `mask` [1, 1, 1, S] is True for those.

    The text's own keys are the last ones, all of them or none.
    """
    count, tokens = k.shape[2], len(tree.ids)
    has_text = count >= tokens and bool((~mask[..., -1]).any())
    return count - tokens if has_text else count


def _along(tree: Tree, q: Tensor, k: Tensor, v: Tensor, first: int, **told: Any) -> Tensor:
    """Attend along the tree, and to the `first` keys, which every token sees."""
    strange = [key for key, value in told.items() if value is not None and key not in KNOWN | IDLE]
    if strange:
        raise PeftkitError(f"attention along shared paths does not know what {', '.join(strange)} asks for.")
    return attend_along(
        q,
        k,
        v,
        plan_of(tree, told.get("sliding_window")),
        first=first,
        scale=told.get("scaling") or q.shape[-1] ** -0.5,
        cap=told.get("softcap"),
        dropout=told.get("dropout") or 0.0,
    )


def tree_mask(*args: Any, **kwargs: Any) -> Tensor:
    """Return the mask [1, 1, 1, N] of no key in front; what a token sees of the others is in the tree."""
    count = sum(len(tree.ids) for tree in STATE.trees)
    return torch.zeros(1, 1, 1, count, dtype=torch.bool, device=STATE.trees[0].ids.device)


AttentionInterface.register(NAME, attention)
AttentionInterface.register(TREE, attention_along)
AttentionMaskInterface.register(NAME, full_mask)
AttentionMaskInterface.register(TREE, tree_mask)
