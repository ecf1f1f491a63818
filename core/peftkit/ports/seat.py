"""How adapters sit on a module: its class gives way to a cached subclass that runs them around the frozen computation.

The base keeps its parameter names, `isinstance` still holds, and any module can be a seat: a linear, a packed 4-bit
kernel, GPT-2's Conv1D, a whole feed-forward block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.kernels.low_rank import PLAIN, add_pair
from peftkit.kernels.low_rank_spans import Offer, Pair, linear_with_pairs
from peftkit.layout import Rows
from peftkit.ports.adapter import Adapter, Call

if TYPE_CHECKING:
    from peftkit.ports.shared_input import Plain, SharedInput

INPUT = "seat_input"
"""The keyword under which a seat hands its input to the adapters within its computation that read it."""


@dataclass
class Switch:
    """Which adaptations of one model run: the `active` one, or those that `rows` or `spans` name, each on its own."""

    active: tuple[str, ...] = ()
    rows: tuple[str | None, ...] | None = None
    """The adaptation of each row of a batch, where rows have their own."""
    spans: tuple[tuple[str, int], ...] | None = None
    """Adaptations and how many of the flat tokens [1, N] each has, one after the other, where tokens have their own."""
    merged: set[str] = field(default_factory=set)
    watchers: list[Callable[[], None]] = field(default_factory=list)
    """Called after what runs has changed."""

    @property
    def names(self) -> tuple[str, ...]:
        """The adaptations that run in some row or span."""
        if self.spans is not None:
            return tuple(name for name, _ in self.spans)
        return self.active if self.rows is None else tuple(dict.fromkeys(name for name in self.rows if name))

    def activate(self, names: Sequence[str]) -> None:
        """Run these adaptations from now on."""
        self.active = tuple(names)
        self.notify()

    def notify(self) -> None:
        """Tell the watchers."""
        for watcher in self.watchers:
            watcher()

    @contextmanager
    def routed(self, rows: Sequence[str | None]):
        """Run row i of every batch inside through the adaptation `rows[i]` (None: the base)."""
        self.rows, before = tuple(rows), self.rows
        self.notify()
        try:
            yield
        finally:
            self.rows = before
            self.notify()

    @contextmanager
    def divided(self, spans: Sequence[tuple[str, int]]):
        """Run the first `spans[0][1]` flat tokens inside through the adaptation `spans[0][0]`, and so on."""
        self.spans, before = tuple(spans), self.spans
        self.notify()
        try:
            yield
        finally:
            self.spans = before
            self.notify()

    @contextmanager
    def alone(self, name: str):
        """Run one adaptation on all that is computed inside, within `divided` too; watchers are not told."""
        before = self.active, self.spans
        self.active, self.spans = (name,), None
        try:
            yield
        finally:
            self.active, self.spans = before


class Seat(nn.Module):
    """Mixed into the class of a seated module; the adapters are in `self.seated`, a list for each adaptation."""

    seated: nn.ModuleDict
    switch: Switch
    sharing: SharedInput | None = None
    """The modules that read the same input, while they are computed together."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module inside the chain of its adapters: tensor in, tensor out; the rest passes by."""
        switch = self.switch
        if switch.rows is None and switch.spans is None and switch.merged.issuperset(switch.active):
            return super().forward(*args, **kwargs)
        if self.sharing is not None and len(args) == 1 and not kwargs:
            shared = self.sharing.output(self, args[0])
            if shared is not None:
                return shared
        kwargs = dict(kwargs)
        x, rest = (args[0], args[1:]) if args else (kwargs.pop(_first_parameter(self.__class__)), None)
        others: list[Any] = []
        hands_on = any(adapter.reads_input for adapter in self.running(switch.names))

        def frozen(value: Tensor) -> Tensor:
            if hands_on:
                kwargs[INPUT] = value
            if rest is None:
                output = super(Seat, self).forward(**{_first_parameter(self.__class__): value}, **kwargs)
            else:
                output = super(Seat, self).forward(value, *rest, **kwargs)
            if isinstance(output, tuple):
                others[:] = output[1:]
                return output[0]
            return output

        frozen.plain = None if kwargs else self.plain()
        if switch.spans is not None:
            y = self._divide(frozen, x, switch.spans, bool(rest or kwargs))
        elif switch.rows is not None:
            y = self._route(frozen, x, switch.rows, bool(rest or kwargs))
        else:
            y = self._chain(frozen, switch.active)(x)
        return (y, *others) if others else y

    def running(self, names: Sequence[str]) -> list[Adapter]:
        """Return the adapters of these adaptations that are switched on, innermost first."""
        seated = (self.seated[name] for name in names if name in self.seated)
        return [adapter for adapters in seated for adapter in cast(list[Adapter], adapters) if adapter.enabled]

    def plain(self) -> Plain | None:
        """Return the weight [out, in] and bias of a linear layer of torch's own class, if both are frozen."""
        if type(self).__mro__[2] is not nn.Linear:
            return None
        weight, bias = cast(nn.Linear, self).weight, cast(nn.Linear, self).bias
        frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
        return (weight, bias) if frozen else None

    def pair(self, x: Tensor) -> Pair | None:
        """Return the pair that the adapters add to the frozen product of x; None where they do anything else.

        None too where hooks stand between an adapter and the product, as those of a profile do.
        """
        switch, plain = self.switch, self.plain()
        if plain is None or switch.rows is not None or switch.spans is not None:
            return None
        names = [name for name in switch.active if name not in switch.merged]
        adapters = self.running(names)
        if len(adapters) != 1 or adapters[0].inside or adapters[0].site.rows is not None:
            return None
        offer = Offer(_declined, x, len(plain[0]))
        try:
            part = self._chain(offer, names)(x)
        except DeclinedError:
            return None
        return offer.pair if part is offer.place else None

    def _chain(self, call: Call, active: Sequence[str]) -> Call:
        for adapter in self.running([name for name in active if name not in self.switch.merged]):
            call = call if adapter.inside else _around(adapter, call)
        return call

    def _route(self, frozen: Call, x: Tensor, rows: tuple[str | None, ...], whole: bool) -> Tensor:
        """Send each row through its own chain; with `whole` the frozen module sees the batch once and undivided."""
        if x.shape[0] != len(rows):
            raise PeftkitError(f"the batch has {x.shape[0]} rows and adapters are named for {len(rows)} of them.")
        y = frozen(x) if whole else None
        parts: list[tuple[Tensor, Tensor]] = []
        for name in dict.fromkeys(rows):
            index = torch.tensor([i for i, row in enumerate(rows) if row == name], device=x.device)
            mine = x.index_select(0, index)
            call = frozen if y is None else _known(mine, partial(y.index_select, 0, index))
            part = self._chain(call, () if name is None else (name,))(mine)
            parts.append((index, part))
        order = torch.cat([index for index, _ in parts]).argsort()
        return torch.cat([part for _, part in parts]).index_select(0, order)

    def _divide(self, frozen: Call, x: Tensor, spans: tuple[tuple[str, int], ...], whole: bool) -> Tensor:
        """Send each span of tokens through its own chain, around one frozen product of them all where that can be.

        Ids may mean another soft prompt in each span, and are looked up one span at a time.
        """
        dim, sizes = _token_dimension(x, spans), [size for _, size in spans]
        product = cache(lambda: frozen(x).split(sizes, dim))
        pieces: Sequence[Tensor] = x.split(sizes, dim)
        calls: list[Call] = [partial(self._alone, frozen, name) for name, _ in spans]
        plain = None
        if whole or x.is_floating_point():
            plain = getattr(frozen, PLAIN)
            calls = [
                _known(mine, lambda place=place: product()[place], None if whole else call)
                for place, (mine, call) in enumerate(zip(pieces, calls, strict=True))
            ]
        out = None if plain is None else len(plain[0])
        parts = [self._part(name, call, mine, out) for (name, _), call, mine in zip(spans, calls, pieces, strict=True)]
        if plain is not None and not any(isinstance(part, Tensor) for part in parts):
            return linear_with_pairs(x, plain[0], plain[1], sizes, cast(list[Pair | None], parts))
        done = [_settle(part, call, mine) for part, call, mine in zip(parts, calls, pieces, strict=True)]
        return torch.cat(done, dim)

    def _part(self, name: str, call: Call, x: Tensor, out: int | None) -> Tensor | Pair | None:
        """Return what the chain of a span computes, or the pair that it adds to `call(x)` [..., out], None for none."""
        adapters = [adapter for adapter in self.running((name,)) if not adapter.inside]
        if not adapters:
            return None
        if out is not None and len(adapters) == 1 and adapters[0].site.rows is None:
            offer = Offer(call, x, out)
            part = self._chain(offer, (name,))(x)
            if part is offer.place or offer.pair is None:
                return offer.pair or part
        return self._chain(call, (name,))(x)

    def _alone(self, frozen: Call, name: str, x: Tensor) -> Tensor:
        with self.switch.alone(name):
            return frozen(x)


def _settle(part: Tensor | Pair | None, call: Call, x: Tensor) -> Tensor:
    """Return the output of a span from what `Seat._part` returned for it."""
    if isinstance(part, Pair):
        return add_pair(call, x, x, part.down, part.up, part.scale)
    return call(x) if part is None else part


def _token_dimension(x: Tensor, spans: Sequence[tuple[str, int]]) -> int:
    """Return the dimension of x along which the flat tokens stand; PeftkitError where there is none."""
    count = sum(size for _, size in spans)
    if x.ndim > 1 and tuple(x.shape[:2]) == (1, count):
        return 1
    if x.shape[0] == count:
        return 0
    raise PeftkitError(
        f"an adapter sits on a module that is given {list(x.shape)} instead of all {count} tokens: it cannot share a "
        "batch with others."
    )


class DeclinedError(Exception):
    """Raised in the place of a frozen product that was asked for where a pair alone would do."""


def _declined(value: Tensor) -> Tensor:
    raise DeclinedError


def _known(x: Tensor, y: Callable[[], Tensor], otherwise: Call | None = None) -> Call:
    def call(value: Tensor) -> Tensor:
        if value is not x and otherwise is not None:
            return otherwise(value)
        if value is not x:
            raise PeftkitError("an adapter that changes the input of a whole block cannot share a batch with others.")
        return y()

    return call


def _around(adapter: Adapter, call: Call) -> Call:
    rows = adapter.site.rows
    return partial(adapter, call) if rows is None else partial(_on_rows, adapter, call, rows)


def _on_rows(adapter: Adapter, call: Call, rows: Rows, x: Tensor) -> Tensor:
    whole = call(x)
    return rows.put(whole, adapter(lambda value: rows.take(whole if value is x else call(value)), x))


@cache
def _first_parameter(cls: Any) -> str:
    frozen = next(base for base in cls.__mro__ if not issubclass(base, Seat))
    return list(inspect.signature(frozen.forward).parameters)[1]  # type: ignore[attr-defined]


@cache
def _seated_class(cls: type[nn.Module]) -> type[nn.Module]:
    return type(f"Seated{cls.__name__}", (Seat, cls), {"__module__": cls.__module__})


def seat(adapter: Adapter, name: str, switch: Switch) -> None:
    """Seat an adapter on its site's module as part of the adaptation `name`, outside those already there."""
    module = adapter.site.module
    if not isinstance(module, Seat):
        module.__class__ = _seated_class(type(module))
        module.seated = nn.ModuleDict()
        cast(Any, module).switch = switch
    seated = cast(Seat, module).seated
    if name not in seated:
        seated[name] = nn.ModuleList()
    cast(nn.ModuleList, seated[name]).append(adapter)


def unseat(module: nn.Module, name: str) -> None:
    """Take the adapters of the adaptation `name` off a module; the last one gives the module its own class back."""
    if not isinstance(module, Seat) or name not in module.seated:
        return
    del module.seated[name]
    if not len(module.seated):
        del module.seated
        del module.switch
        cast(Any, module).__class__ = type(module).__mro__[2]
