"""What the body of a model is given, kept for adapters: tokens, their positions, and which of them are the prompt."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils.hooks import RemovableHandle

from peftkit.keys import STRIDE, numbers, without
from peftkit.ports.context import Context
from peftkit.ports.tokens import Tokens

CACHES = ("past_key_values", "layer_past", "cache_params")
KEYS = "keys"
"""Under which name a cache keeps the key of each row."""
KEPT = "peftkit_kept"
"""Where a cache has what adapters keep of its rows."""


def hear(bodies: Sequence[nn.Module], context: Context, name: str) -> None:
    """Have the context hold what a body is given, caches what adapters keep, and positions be raised as adapters say.

    Of `bodies` that call each other the outermost one in a pass is heard. It ends once `Context.forget` was called for
    each `name` for which it began.
    """
    if not context.hearers:
        ear = Ear(context)
        context.ears[:] = [handle for body in bodies for handle in ear.hooks(body)]
    context.hearers.add(name)


class Ear:
    """The hooks of bodies that may call each other."""

    def __init__(self, context: Context):
        self.context = context
        self.running: list[nn.Module] = []
        self.raised = False
        """Whether the positions of this pass are raised."""

    def hooks(self, body: nn.Module) -> list[RemovableHandle]:
        """Hear a body until the handles are removed."""
        return [
            body.register_forward_pre_hook(self.before, with_kwargs=True),
            body.register_forward_hook(self.after, with_kwargs=True, always_call=True),
        ]

    def before(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        before = named
        if not self.running:
            self.raised = False
            args, named = self.listen(args, named)
        self.running.append(module)
        same = None if named is before else (args, named)
        offsets, tokens = self.context.offsets(), self.context.tokens
        nothing = isinstance(offsets, int) and not offsets
        if nothing or tokens is None or self.raised or "position_ids" not in parameters(type(module)):
            return same
        self.raised = True
        given = named.get("position_ids")
        given = tokens.positions.clamp(min=0) if given is None else given
        offsets = offsets if isinstance(offsets, int) else offsets.to(given.device)
        return args, {**named, "position_ids": given + offsets}

    def listen(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Keep what the body is given; returns it, with ids as the body shall see them where some carry keys."""
        cache = _cache(named)
        self.context.kept = {} if cache is None else kept_in(cache)
        ids = args[0] if args else named.get("input_ids")
        if ids is None:
            self.context.tokens = None
            return args, named
        places, found = positions(ids, named), None
        if self.context.keyed:
            found = row_keys(self.context, ids, places)
            if not (ids.is_meta or isinstance(ids, FakeTensor)) and bool((ids >= STRIDE).any()):
                ids = without(ids)
                args, named = ((ids, *args[1:]), {**named}) if args else (args, {**named, "input_ids": ids})
        rows = torch.arange(len(ids), device=ids.device)[:, None].expand(ids.shape)
        self.context.tokens = Tokens(ids, places, rows, len(ids), self.context.told, keys=found)
        return args, named

    def after(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        self.running.pop()
        cache = _cache(output) if isinstance(output, Mapping) else None
        if cache is not None and self.context.kept:
            vars(cache)[KEPT] = self.context.kept


def row_keys(context: Context, ids: Tensor, places: Tensor) -> Tensor:
    """Return for each token [B, T] the number of the key of its row, -1 where it has none.

    It is that of the first token before, which stands in place 0: texts with different keys have nothing in common, and
    may follow each other in one line. With a cache it is the key that the row had when its first token was read.
    """
    if KEYS in context.kept:
        return context.kept[KEYS][:, None].expand(ids.shape)
    found = numbers(ids)
    rows = found.amax(1, keepdim=True)
    if context.keys is not None:
        told = context.keys.to(ids.device).repeat_interleave(len(ids) // len(context.keys))[:, None]
        rows = torch.where(rows < 0, told, rows)
        found = torch.where(found < 0, told, found)
    if not (context.trees or torch.is_grad_enabled()):
        context.kept[KEYS] = rows[:, 0]
    at = torch.arange(ids.shape[1], device=ids.device)
    first = found.gather(1, torch.where(places == 0, at, 0).cummax(1).values)
    return torch.where(places < 0, rows, first)


@cache
def parameters(cls: type[nn.Module]) -> frozenset[str]:
    """Return the names of what the modules of a class are given."""
    return frozenset(inspect.signature(cls.forward).parameters)


def kept_in(cache: Any) -> dict[Any, Tensor]:
    """Return what adapters keep of the rows of a cache, [rows, ...] each."""
    return vars(cache).setdefault(KEPT, {})


def positions(ids: Tensor, named: Mapping[str, Any]) -> Tensor:
    """Return the place of each token [B, T] in its row, from what the body is given by name; -1 for padding."""
    given, mask = named.get("position_ids"), named.get("attention_mask")
    real = mask[:, -ids.shape[1] :] > 0 if isinstance(mask, Tensor) and mask.ndim == 2 else None
    if isinstance(given, Tensor):
        places = (given[0] if given.ndim == 3 else given).expand(ids.shape)
    elif isinstance(mask, Tensor) and real is not None:
        places = mask.cumsum(1)[:, -ids.shape[1] :] - 1
    else:
        cache = _cache(named)
        begin = cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
        places = torch.arange(begin, begin + ids.shape[1], device=ids.device).expand(ids.shape)
    return places if real is None or real.shape != ids.shape else places.masked_fill(~real, -1)


def _cache(named: Mapping[str, Any]) -> Any:
    found = (named.get(name) for name in CACHES)
    return next((cache for cache in found if cache is not None and hasattr(cache, "__dict__")), None)
