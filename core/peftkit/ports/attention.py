"""The port of attention: an adapter around the attention of one layer, given its queries, keys and values.

It goes through transformers' registry of attention functions, so that it works with grouped keys and values, rotary
positions, caches, beams and gradient checkpointing, and touches no cache. Families without that registry are refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
from peftkit.ports.context import LINK, Context, Routing, context_of
from peftkit.ports.seat import Seat

NAME = "peftkit"
TREE = "peftkit-tree"
KERNEL = "sdpa"
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class AttentionAdapter(Adapter):
    """An adapter inside the attention of its site: `forward(attend, q, k, v, mask) -> y`.

    q [B, heads, T, size]; k and v [B, groups, S, size] after rotary positions, those of the cache included; mask
    [B or 1, 1, T, S], True where a query may look; y [B, T, heads, size], as `attend(q, k, v, mask)` returns it. What
    the attention itself reads, x [B, T, width], is `self.input`.
    """

    inside: ClassVar[bool] = True

    @property
    def input(self) -> Tensor:
        """The hidden states [B, T, width] from which the queries that are given were made."""
        return self.context.tape[self.site.module]

    def forward(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the adapted attention."""
        raise TypeError(f"{type(self).__name__} does not define what it computes")


def listen(model: nn.Module, context: Context) -> None:
    """Have the model's attention run its active adapters, and its own function as it was while none is active."""
    config = cast(Any, model).config
    own = context.own_attention = config._attn_implementation

    def choose() -> None:
        seats = (module for module in model.modules() if isinstance(module, Seat))
        wanted = any(adapter.inside for seat in seats for adapter in seat.running(context.names))
        config._attn_implementation = NAME if wanted else own

    context.watchers.append(choose)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **rest: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' registry asks it, through the adapters of `module`."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return ALL_ATTENTION_FUNCTIONS[KERNEL](module, q, k, v, mask, **rest)[0]

    if not isinstance(module, Seat):
        return attend(query, key, value, attention_mask), None
    context = module.peftkit_context
    routing = context.routing
    if routing is None:
        return _chain(module, context.active, attend)(query, key, value, attention_mask), None
    mask = attention_mask.expand(query.shape[0], -1, -1, -1)
    portions = [routing.order(x).split(routing.sizes) for x in (query, key, value, mask)]
    inputs = _inputs(module, routing, 0)
    parts = []
    for name, x, *given in zip(routing.names, inputs, *portions, strict=True):
        with _input(module, x):
            parts.append(_chain(module, (name,), attend)(*given))
    return routing.restore(torch.cat(parts)), None


@torch.compiler.disable
def attention_along(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **rest: Any
) -> tuple[Tensor, None]:
    """Attend as `attention` does, along the trees, which are others in each step: no compiler looks inside."""
    context: Context = module.__dict__[LINK]
    tree, *others = context.trees
    if context.heard is not None:
        context.heard(module, query, key, value, rest)
    if not others:
        call = _attend_along(tree, key, rest)
        call = _chain(module, context.names, call) if isinstance(module, Seat) else call
        return call(query, key, value, attention_mask), None
    sizes = [len(tree.ids) for tree in context.trees]
    names = context.routing.names if context.routing is not None else [None] * len(sizes)
    portions = query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), attention_mask.split(sizes, 3)
    inputs = [None] * len(sizes) if context.routing is None else _inputs(module, context.routing, 1)
    parts = []
    for tree, name, x, q, k, v, mask in zip(context.trees, names, inputs, *portions, strict=True):
        call = _attend_along(tree, k, rest)
        with _input(module, x):
            call = _chain(module, (name,), call) if isinstance(module, Seat) else call
            parts.append(call(q, k, v, mask))
    return torch.cat(parts, 1), None


def _inputs(module: nn.Module, routing: Routing, dimension: int) -> Sequence[Tensor | None]:
    """Return of what the attention reads that of each portion; None where no adapter is there to ask."""
    x = module.__dict__[LINK].tape.get(module)
    return [None] * len(routing.sizes) if x is None else routing.order(x, dimension).split(routing.sizes, dimension)


@contextmanager
def _input(module: nn.Module, x: Tensor | None) -> Iterator[None]:
    """Have the adapters of an attention read x as its input."""
    tape = module.__dict__[LINK].tape
    before = tape.get(module)
    if x is not None:
        tape[module] = x
    try:
        yield
    finally:
        if x is not None:
            tape[module] = before


def _attend_along(tree: Tree, key: Tensor, rest: dict[str, Any]) -> Attend:
    return lambda q, k, v, mask: _along(tree, q, k, v, 0 if k is key else _front(tree, k, mask), **rest)


def _chain(module: Seat, names: Sequence[str | None], attend: Attend) -> Attend:
    for adapter in module.running(names):
        if adapter.inside:
            attend = partial(adapter, attend)
    return attend


def full_mask(*args: Any, **kwargs: Any) -> Tensor:
    """Return the mask [B or 1, 1, T, S] written out, also where the kernel could do without one."""
    return ALL_MASK_ATTENTION_FUNCTIONS[KERNEL](
        *args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    )


KNOWN = {"scaling", "dropout", "sliding_window", "softcap"}
"""What attention functions are given and the tree's can do; other things that are set are refused."""
IDLE = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "cache_position", "is_causal"}
IDLE |= {"position_embeddings", "return_dict", "output_router_logits", "logits_to_keep"}
IDLE |= {"seq_idx", "cu_seq_lens_q", "cu_seq_lens_k"}


@contextmanager
def along(model: nn.Module, *trees: Tree) -> Iterator[None]:
    """Run the model inside on the flat tokens of `trees`, forward and backward; its attention sees paths alone.

    Of several trees each has the tokens of one portion of the routing.
    """
    config, context = cast(Any, model).config, context_of(model)
    before, config._attn_implementation = config._attn_implementation, TREE
    context.trees = trees
    try:
        yield
    finally:
        context.trees = ()
        context.tape.clear()
        config._attn_implementation = before


def _front(tree: Tree, k: Tensor, mask: Tensor) -> int:
    """Return how many of the keys [1, groups, S, size] stand in front: `mask` [1, 1, 1, S] is True for those.

    The text's own keys are the last ones, all of them or none.
    """
    count, tokens = k.shape[2], len(tree.ids)
    has_text = count >= tokens and bool((~mask[..., -1]).any())
    return count - tokens if has_text else count


def _along(tree: Tree, q: Tensor, k: Tensor, v: Tensor, first: int, **asked: Any) -> Tensor:
    """Attend along the tree, and to the `first` keys, which every token sees."""
    unsupported = [key for key, value in asked.items() if value is not None and key not in KNOWN | IDLE]
    if unsupported:
        raise PeftkitError(f"attention along shared paths does not know what {', '.join(unsupported)} asks for.")
    return attend_along(
        q,
        k,
        v,
        plan_of(tree, asked.get("sliding_window")),
        first=first,
        scale=asked.get("scaling") or q.shape[-1] ** -0.5,
        cap=asked.get("softcap"),
        dropout=asked.get("dropout") or 0.0,
    )


def packed(tree: Tree, q: Tensor, k: Tensor, v: Tensor, **asked: Any) -> Tensor:
    """Return y [1, N, heads, size] of the flat tokens of a tree, as `attention_along` does without adapters."""
    return _along(tree, q, k, v, 0, **asked)


def models_own(module: nn.Module, implementation: str) -> Callable[..., Any]:
    """Return the attention function that `module` takes itself where its model's is `implementation`."""
    kind = type(module).__mro__[2] if isinstance(module, Seat) else type(module)
    eager = inspect.unwrap(kind.forward).__globals__.get("eager_attention_forward")
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)


def tree_mask(*, q_length: int, device: torch.device, **rest: Any) -> Tensor:
    """Return the mask [1, 1, 1, N] of no key in front; what a token sees of the others is in the tree."""
    return torch.zeros(1, 1, 1, q_length, dtype=torch.bool, device=device)


AttentionInterface.register(NAME, attention)
AttentionInterface.register(TREE, attention_along)
AttentionMaskInterface.register(NAME, full_mask)
AttentionMaskInterface.register(TREE, tree_mask)
