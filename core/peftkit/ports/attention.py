"""The port of attention: an adapter around the attention of one layer, given its queries, keys and values.

It goes through transformers' registry of attention functions, so that it works with grouped keys and values, rotary
positions, caches, beams and gradient checkpointing, and touches no cache. Attention that a model computes past that
registry is entered through its cache (`peftkit.ports.own_attention`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from peftkit.ports.adapter import Adapter
from peftkit.ports.context import CALL, LINK, REACH, SPANS, Context, Routing, Spans
from peftkit.ports.own_attention import alone, bound, reach, reached
from peftkit.ports.seat import Seat

NAME = "peftkit"
EAGER = "peftkit-eager"
"""In the place of a model's own products, whose masks are added to the scores."""
KERNEL = "sdpa"
BEYOND_KERNEL = {"softcap", "s_aux", "sinks"}
"""What attention functions are asked for and that kernel cannot do: the model's own products can."""
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class AttentionAdapter(Adapter):
    """An adapter inside the attention of its site: `forward(attend, q, k, v, mask) -> y`.

    q [B, heads, T, size]; k and v [B, groups, S, size] after rotary positions, those of the cache included, where the
    sizes of values may be others; mask [B or 1, 1 or heads, T, S], True where a query may look, or what is added to
    the scores; y [B, T, heads, size], as `attend(q, k, v, mask)` returns it. What the attention itself reads,
    x [B, T, width], is `self.input`. Where `site.heads.own` is set, q has no heads, and y [B, T, width] is what the
    whole module makes of the attention, which is affine in it.
    """

    inside: ClassVar[bool] = True

    @property
    def input(self) -> Tensor:
        """The hidden states [B, T, width] from which the queries that are given were made."""
        return self.context.tape[self.site.module]

    @torch.compiler.disable()
    def made(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values [1, groups, L, size] that the frozen attention makes of x [L, width].

        They are those at position zero, without the adapters inside the attention.
        """
        module, tape = self.site.module, self.context.tape
        call, args, kwargs = tape[module, CALL]
        arguments = alone(call, bound(call, args, kwargs), x, own=_own(self))
        tape[module, REACH] = True
        try:
            with self.context.only(None):
                return reached(call, arguments)
        finally:
            del tape[module, REACH]

    @contextmanager
    def within(self, spans: Spans) -> Iterator[None]:
        """Have each token see its own span of its row alone where the text attends inside; no cache is in front.

        Keys that other adapters put in front stay seen. Attention in a model's own code takes no notice of it.
        """
        tape = self.context.tape
        tape[self.site.module, SPANS] = spans
        try:
            yield
        finally:
            del tape[self.site.module, SPANS]

    @property
    def longest(self) -> int | None:
        """The tokens of the longest row where rows are flat; None where they are padded."""
        rows = [row for tree in self.context.trees for row in tree.rows]
        return max(map(len, rows)) if rows else None

    def forward(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the adapted attention."""
        raise TypeError(f"{type(self).__name__} does not define what it computes")


def configs(model: nn.Module) -> list[Any]:
    """Return the configurations that name the attention function of the text's layers: that of the text comes last."""
    whole = cast(Any, model).config
    return list({id(config): config for config in (whole, whole.get_text_config())}.values())


def listen(model: nn.Module, context: Context) -> None:
    """Have the model's attention run its active adapters, and its own function as it was while none is active."""
    before = [(config, config._attn_implementation) for config in configs(model)]
    own = context.own_attention = before[-1][1]

    def choose() -> None:
        seats = (module for module in model.modules() if isinstance(module, Seat))
        wanted = any(adapter.inside and not _own(adapter) for seat in seats for adapter in seat.running(context.names))
        for config, implementation in before:
            config._attn_implementation = (EAGER if own == "eager" else NAME) if wanted else implementation

    context.watchers.append(choose)


def _own(adapter: Adapter) -> bool:
    return adapter.site.heads is not None and adapter.site.heads.own


def stop(module: nn.Module, key: Tensor, value: Tensor) -> None:
    """Let `AttentionAdapter.made` have the keys and values where it asks for those alone."""
    if isinstance(module, Seat) and (module, REACH) in module.peftkit_context.tape:
        reach(key, value)


def opened(mask: Tensor, count: int) -> Tensor:
    """Return the mask [..., T, count] of keys that every query of `mask` [..., T, S] may look at."""
    return mask.new_full((*mask.shape[:-1], count), mask.dtype == torch.bool)


def shut(mask: Tensor) -> Any:
    """Return what stands in a mask where a query may not look."""
    return False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' registry asks it, through the adapters of `module`."""
    stop(module, key, value)
    mask, rest = _with_all(module, query, key, attention_mask, rest)
    if not isinstance(module, Seat):
        return _attend(module, rest)(query, key, value, mask), None
    context = module.peftkit_context
    routing = context.routing
    if routing is None:
        return chain(module, context.active, _attend(module, rest))(query, key, value, mask), None
    mask = mask.expand(query.shape[0], -1, -1, -1)
    portions = [routing.order(x).split(routing.sizes) for x in (query, key, value, mask)]
    given_to, asked = inputs(module, routing, 0), _asked(rest, routing, len(query))
    parts = []
    for name, x, others, *given in zip(routing.names, given_to, asked, *portions, strict=True):
        with input_as(module, x):
            parts.append(chain(module, (name,), _attend(module, others))(*given))
    return routing.restore(torch.cat(parts)), None


def _attend(module: nn.Module, rest: Mapping[str, Any]) -> Attend:
    """Return the kernel that does all that is asked for: the model's own products where the other cannot."""
    plain = cast(Any, module).config._attn_implementation == EAGER
    if plain or any(rest.get(name) is not None for name in BEYOND_KERNEL):
        products = models_own(module, "eager")
        return lambda q, k, v, mask: products(module, q, k, v, _added(_parted(module, mask), q.dtype), **rest)[0]
    return lambda q, k, v, mask: ALL_ATTENTION_FUNCTIONS[KERNEL](module, q, k, v, _parted(module, mask), **rest)[0]


def spans_of(module: nn.Module) -> Spans | None:
    """Return the spans within which the tokens of a module attend now; None where they see all of their row."""
    context = module.__dict__.get(LINK)
    return None if context is None else context.tape.get((module, SPANS))


def _parted(module: nn.Module, mask: Tensor) -> Tensor:
    """Return the mask without what the spans of a module part; the last keys are those of the text, if any are."""
    spans, (tokens, count) = spans_of(module), mask.shape[-2:]
    # Where the first token sees the last key, all keys are in front.
    if spans is None or count < tokens or tokens < 2 or bool(_open(mask[..., 0, -1]).any()):
        return mask
    places = torch.arange(tokens, device=mask.device)
    span = torch.where(places < spans.first, -1, (places - spans.first).div(spans.length, rounding_mode="floor"))
    apart = F.pad(span[:, None] != span, (count - tokens, 0))
    parted = mask.masked_fill(apart, shut(mask))
    # Padding that is left with no key sees what it saw: no number comes of none.
    return torch.where(_open(parted).any(-1, keepdim=True), parted, mask)


def _open(mask: Tensor) -> Tensor:
    """Return where a mask lets a query look."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def models_own(module: nn.Module, implementation: str) -> Callable[..., Any]:
    """Return the attention function that `module` takes itself where its model's is `implementation`."""
    frozen = next(cls for cls in type(module).__mro__ if "forward" in vars(cls) and not issubclass(cls, Seat))
    eager = cast(Any, inspect.unwrap(frozen.forward)).__globals__.get("eager_attention_forward")
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as what is added to scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _with_all(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, rest: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Return the mask with all in it that is asked for single keys, and what else is asked for.

    `indices` [B, T, top] are the keys that a query may look at, `block_indices` the same of blocks of keys, and
    `position_bias` [B, heads, T, S] is added to the scores.
    """
    rest = dict(rest)
    if mask is None:
        mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        causal = rest.get("is_causal")
        if getattr(module, "is_causal", True) if causal is None else causal:
            mask = mask.tril(key.shape[2] - query.shape[2])
    indices, blocks, bias = (rest.pop(name, None) for name in ("indices", "block_indices", "position_bias"))
    if indices is not None:
        shape = query.shape[0], query.shape[2], key.shape[2]
        left_out = torch.ones(shape, dtype=torch.bool, device=query.device).scatter(-1, indices.long(), False)
        mask = mask.masked_fill(left_out[:, None], shut(mask))
    if blocks is not None:
        indexer, where = cast(Any, module).indexer, (key.shape[2], query.dtype, query.device, rest.get("position_ids"))
        mask = cast(Tensor, indexer.build_block_mask(blocks, mask, *where))
    return mask if bias is None else _added(mask, query.dtype) + bias, rest


def _asked(rest: Mapping[str, Any], routing: Routing, rows: int) -> list[dict[str, Any]]:
    """Return what is asked for of each portion: what has a row for each of the batch is divided."""
    asked = [dict(rest) for _ in routing.sizes]
    for name, value in rest.items():
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows:
            for part, share in zip(asked, routing.order(value).split(routing.sizes), strict=True):
                part[name] = share
    return asked


def inputs(module: nn.Module, routing: Routing, dimension: int) -> Sequence[Tensor | None]:
    """Return of what the attention reads that of each portion; None where no adapter is there to ask."""
    x = module.__dict__[LINK].tape.get(module)
    return [None] * len(routing.sizes) if x is None else routing.order(x, dimension).split(routing.sizes, dimension)


@contextmanager
def input_as(module: nn.Module, x: Tensor | None) -> Iterator[None]:
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


def chain(module: Seat, names: Sequence[str | None], attend: Attend) -> Attend:
    """Return `attend` inside the adapters of these adaptations."""
    for adapter in module.running(names):
        if adapter.inside:
            attend = partial(adapter, attend)
    return attend


def full_mask(*args: Any, kind: str = KERNEL, **kwargs: Any) -> Tensor:
    """Return the mask [B or 1, 1, T, S] written out, also where the kernel could do without one."""
    return ALL_MASK_ATTENTION_FUNCTIONS[kind](
        *args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    )


def register(name: str, function: Callable[..., Any], mask: Callable[..., Any]) -> None:
    """Let models call an attention function, and what makes its masks, by a name."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, mask)


register(NAME, attention, full_mask)
register(EAGER, attention, partial(full_mask, kind="eager"))
