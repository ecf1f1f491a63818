"""The port of attention where a model computes it past transformers' registry: through the cache that it fills.

The module runs up to its cache for the keys and values of the text, and then as often as an adapter attends, with a
cache that hands it the keys and values of the adapter. So it works in training, under gradient checkpointing and in
generation alike; the positions of the text and the model's own cache stay as they are.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from peftkit.errors import PeftkitError
from peftkit.ports.adapter import Adapter
from peftkit.ports.context import Routing

CACHES = ("past_key_values", "layer_past")
MASK, ALIBI, BIAS = "attention_mask", "alibi", "position_bias"
"""What is added to the scores of the keys, beside the cache, as modelling code calls it."""


class ReachedError(Exception):
    """A module has made its keys and values, which are the arguments."""


class _Cache:
    """What stands in for the cache of a module: `update` is ours, all else is asked of the cache itself, if any."""

    def __init__(self, update: Callable[..., Any], cache: Any):
        self.update, self.cache = update, cache

    def __getattr__(self, name: str) -> Any:
        if self.cache is not None:
            return getattr(self.cache, name)
        if name == "get_seq_length":
            return lambda *args: 0
        raise AttributeError(name)


def bound(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name, those that are left out with their defaults."""
    bound = inspect.signature(call).bind(*args, **kwargs)
    bound.apply_defaults()
    named = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name))
    return named


@torch.compiler.disable()
def attend_own(
    run: Callable[..., Any], chains: Sequence[Sequence[Adapter]], routing: Routing | None, arguments: dict[str, Any]
) -> Any:
    """Run a module through the adapters inside its attention; `arguments` are those of its forward, by name.

    `chains` are the adapters of each portion of the routing, or one chain for all rows.
    """
    attention = _OwnAttention(run, arguments)
    outputs = [attention.through(chain) for chain in chains]
    if routing is None:
        return attention.output(outputs[0])
    portions = [routing.order(y).split(routing.sizes)[place] for place, y in enumerate(outputs)]
    return attention.output(routing.restore(torch.cat(portions)))


def reach(key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Stop a module that has made these."""
    raise ReachedError(key, value)


def reached(run: Callable[..., Any], arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Run an attention until it has made its keys and values, and return those."""
    try:
        run(**arguments)
    except ReachedError as made:
        return made.args[0], made.args[1]
    raise PeftkitError(
        "the attention of this model leaves out what adapters enter it by: choose a method of another port."
    )


def alone(run: Callable[..., Any], arguments: dict[str, Any], x: Tensor, *, own: bool) -> dict[str, Any]:
    """Return the arguments of an attention with x [L, width] in the place of the hidden states, at no position.

    It stops at the cache where it is entered there (`own`), and has none otherwise. Tensors that are not known and may
    be left out are, since they are about tokens that are not there.
    """
    hidden, needed = next(iter(arguments.values())), _needed(run)
    changed: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in CACHES:
            changed[name] = _Cache(reach, None) if own else None
        elif name == MASK:
            changed[name] = _each(value, partial(_all_seen, count=len(x)))
        elif name == "position_embeddings":
            changed[name] = _each(value, partial(_at_start, count=len(x)))
        elif name == "position_ids":
            changed[name] = None if value is None else value.new_zeros(1, len(x))
        elif isinstance(value, Tensor):
            changed[name] = (
                x[None] if value.shape == hidden.shape else value if name in needed else _first_keys(value, x)
            )
        elif isinstance(value, MutableMapping):
            # Other layers find here what this one leaves for them.
            changed[name] = copy.copy(value)
    return {**arguments, **changed}


def _first_keys(value: Tensor, x: Tensor) -> Tensor | None:
    """Return for the keys [B, T, top] that queries are to look at the first one, and None for anything else."""
    chosen = value.ndim == 3 and value.dtype in (torch.int32, torch.int64)
    return value.new_zeros(1, len(x), 1) if chosen else None


def _needed(run: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(run).parameters
    return {name for name, parameter in parameters.items() if parameter.default is parameter.empty}


def _all_seen(mask: Tensor, count: int) -> Tensor:
    """Return a mask of pairs of `count` tokens in which all see all, or one of tokens that are all there."""
    if mask.ndim == 2:
        return mask.new_ones(1, count)
    return mask.new_full((1, 1, count, count), mask.dtype == torch.bool)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _each(part, change) for name, part in value.items()}
    return value if value is None else change(value)


def _at_start(turns: Any, count: int) -> Any:
    """Return what rotary positions turn by at position zero: the cosines and sines, or complex numbers."""
    if isinstance(turns, Tensor):
        return torch.ones_like(turns[:1, :1]).expand(1, count, *turns.shape[2:])
    cos, sin = turns
    return _at_start(cos, count), torch.zeros_like(sin[:1, :1]).expand(1, count, *sin.shape[2:])


class _OwnAttention:
    """The attention of one call of a module, which is run again with other keys and values."""

    def __init__(self, run: Callable[..., Any], arguments: dict[str, Any]):
        self.run, self.arguments = run, arguments
        self.name = next(name for name in CACHES if name in arguments)
        self.key, self.value = self._made()
        self.mask, self.as_given = _known(arguments.get(MASK), next(iter(arguments.values())), self.key)
        self.rest: Any = None
        """What the module returned last beside its hidden states."""

    def through(self, chain: Sequence[Adapter]) -> Tensor:
        """Return the hidden states [B, T, width] that the module makes with these adapters inside."""
        attend: Callable[..., Tensor] = self._attend
        for adapter in chain:
            attend = partial(adapter, attend)
        queries = self.key.new_empty(len(self.key), 0, self.mask.shape[2], self.key.shape[3])
        return attend(queries, self.key, self.value, self.mask)

    def output(self, hidden: Tensor) -> Any:
        """Return hidden states in the form in which the module returns its own."""
        return hidden if self.rest is None else (hidden, *self.rest)

    def _made(self) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the text, [B, groups, S, size] each, once they are in the model's cache."""
        cache = self.arguments[self.name]

        def reach(*given: Any, **named: Any) -> Any:
            key, value = given[:2] if cache is None else cache.update(*given, **named)
            raise ReachedError(key, value)

        return reached(self.run, {**self.arguments, self.name: _Cache(reach, cache)})

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        count = k.shape[2] - self.key.shape[2]
        order = _order(self.mask, count)
        k, v = (x if order is None else x.gather(2, order[:, None, :, None].expand_as(x)) for x in (k, v))
        if order is not None:
            mask = mask.expand(len(order), -1, -1, -1)
            mask = mask.gather(3, order[:, None, None].expand_as(mask))
        changed = {
            MASK: self.as_given(mask),
            self.name: _Cache(lambda *given, **named: (k, v), self.arguments[self.name]),
        }
        for name in (ALIBI, BIAS):
            if self.arguments.get(name) is not None:
                changed[name] = _longer(self.arguments[name], self.key.shape[2], count, order)
        output = self.run(**{**self.arguments, **changed})
        if isinstance(output, tuple):
            output, self.rest = output[0], output[1:]
        return output


def _known(mask: Tensor | None, x: Tensor, key: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the mask as adapters know it, [B or 1, 1 or heads, T, S], and how it becomes the module's own again."""
    if mask is None:
        hidden = torch.ones(1, 1, x.shape[1], key.shape[2], dtype=torch.bool, device=x.device)
        hidden = hidden.triu(key.shape[2] - x.shape[1] + 1)
        least = torch.finfo(x.dtype).min
        return torch.zeros(hidden.shape, dtype=x.dtype, device=x.device).masked_fill(hidden, least), lambda mask: mask
    known = mask[:, None] if mask.ndim == 3 else mask
    known = known if mask.is_floating_point() else known.bool()
    inverted = known.dtype == torch.bool and not _shows(known)
    return ~known if inverted else known, partial(_given, like=mask, inverted=inverted)


def _given(mask: Tensor, *, like: Tensor, inverted: bool) -> Tensor:
    mask = (~mask if inverted else mask).to(like.dtype)
    return mask[:, 0] if like.ndim == 3 else mask


def _shows(mask: Tensor) -> bool:
    """Say whether True in a mask [B, 1, T, S] means that a query looks at a key.

    The first query of a row that is not padded on the left sees the first key; where some are, all see the last one.
    """
    if hollow(mask):
        return True
    first = mask[:, 0, 0, 0]
    return bool((first if bool((first == first[0]).all()) else mask[:, 0, -1, -1])[0])


def hollow(x: Tensor) -> bool:
    """Say whether a tensor has no values: nothing is computed then but sizes."""
    return x.is_meta or isinstance(x, FakeTensor)


def _order(mask: Tensor, count: int) -> Tensor | None:
    """Return where the keys [B, count + S] are to be taken from so that `count` of them follow a row's padding.

    Distances of a text to what stands in front are then those of the text alone; None where no row is padded so.
    """
    seen = (
        mask[:, :, -1].any(1) if mask.dtype == torch.bool else (mask[:, :, -1] > torch.finfo(mask.dtype).min / 2).any(1)
    )
    begin = seen.long().argmax(1, keepdim=True)
    if not count or hollow(begin) or not bool(begin.any()):
        return None
    places = torch.arange(count + seen.shape[1], device=mask.device)[None]
    moved = torch.where(places < begin + count, places - begin, places)
    return torch.where(places < begin, places + count, moved)


def _longer(bias: Tensor, tokens: int, count: int, order: Tensor | None) -> Tensor:
    """Return what is added to the scores of `tokens` keys for `count` more in front, which get what the first one has.

    One for all rows, of which the module takes the end, goes on in even steps.
    """
    if (bias.ndim == 3 and bias.shape[-1] > tokens) or bias.shape[-1] != tokens:
        missing = max(0, tokens + count - bias.shape[-1])
        steps = torch.arange(missing, 0, -1, device=bias.device)
        return torch.cat([bias[..., :1] - steps * (bias[..., 1:2] - bias[..., :1]), bias], -1)
    bias = F.pad(bias, (count, 0))
    if order is None:
        return bias
    rows = bias.view(len(order), -1, *bias.shape[1:]) if bias.ndim == 3 else bias.expand(len(order), -1, -1, -1)
    return rows.gather(-1, order[:, None, None].expand_as(rows)).view(bias.shape if bias.ndim == 3 else rows.shape)
