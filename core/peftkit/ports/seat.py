"""How adapters sit on a module: its class gives way to a cached subclass that runs them around the frozen computation.

The base keeps its parameter names, `isinstance` still holds, and any module can be a seat: a linear, a packed 4-bit
kernel, GPT-2's Conv1D, a whole feed-forward block.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from peftkit.kernels.low_rank import Linear, Pair, add_pair, linears_with_pairs
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.around import around, known, may_be_pair, settle
from peftkit.ports.context import CALL, LINK, Context, Routing
from peftkit.ports.own_attention import attend_own, bound


class InputGroup(Protocol):
    """Seats that are computed together (`peftkit.ports.shared_input`)."""

    def output(self, member: Seat, x: Tensor) -> Tensor | None:
        """Return what a member makes of x, where the group has that; None where it has to compute by itself."""
        ...


class Seat(nn.Module):
    """Mixed into the class of a seated module; the adapters are in `self.seated`, a list for each adaptation."""

    seated: nn.ModuleDict
    peftkit_context: Context
    input_group: InputGroup | None = None
    """The modules that read the same input, while they are computed together."""
    entries: tuple[nn.Module, ...] = ()
    """The first modules of the spans that end here, for adapters around them."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module inside the chain of its adapters: tensor in, tensor out; the rest passes by."""
        context = self.peftkit_context
        routing = context.routing
        if routing is None and context.merged.issuperset(context.active):
            return super().forward(*args, **kwargs)
        if self.input_group is not None and len(args) == 1 and not kwargs:
            shared = self.input_group.output(self, args[0])
            if shared is not None:
                return shared
        kwargs = dict(kwargs)
        x, rest = (args[0], args[1:]) if args else (kwargs.pop(_first_parameter(self.__class__)), None)
        beside: list[Sequence[Any]] = []

        # What attention reads, for the adapters inside it.
        taped = [adapter for adapter in self.running(context.names) if adapter.inside]
        forward = super().forward
        own = any(adapter.site.heads is not None and adapter.site.heads.own for adapter in taped)

        def frozen(value: Tensor) -> Tensor:
            if rest is None:
                given: tuple[Any, ...] = ()
                named = {_first_parameter(self.__class__): value, **kwargs}
            else:
                given, named = (value, *rest), kwargs
            if taped:
                context.tape[self], context.tape[self, CALL] = value, (forward, given, named)
            if own:
                output = attend_own(forward, self._inside(), context.routing, bound(forward, given, named))
            else:
                output = forward(*given, **named)
            # Parts of a layer give their state, the attention's weights or the choice of experts beside.
            if isinstance(output, tuple | list):
                beside[:] = [output[1:]]
                output = output[0]
            # Experts may give their tokens in one line, for the layer to fold.
            return output.view_as(value) if output.dim() < value.dim() and output.numel() == value.numel() else output

        whole = bool(rest or kwargs)
        if routing is None:
            y = self._chain(frozen, context.active, None if whole else self.frozen_linear())(x)
        elif (rows := self._by_row(x, routing)) is not x:
            flat = self._route(lambda v: frozen(v.flatten(0, 1)).unflatten(0, v.shape[:2]), rows, routing, whole)
            y = flat.flatten(0, 1)
        else:
            y = self._route(frozen, x, routing, whole)
        for read in (*((self, (self, CALL)) if taped else ()), *self.entries):
            context.tape.pop(read, None)
        if not beside:
            return y
        # A model may put its own behind them: what was a list stays one.
        return [y, *beside[0]] if isinstance(beside[0], list) else (y, *beside[0])

    def running(self, names: Sequence[str | None]) -> list[Adapter]:
        """Return the adapters of these adaptations that are switched on, innermost first."""
        seated = (self.seated[name] for name in names if name is not None and name in self.seated)
        return [adapter for adapters in seated for adapter in cast(list[Adapter], adapters) if adapter.enabled]

    def adaptersaround(self, names: Sequence[str | None]) -> list[Adapter]:
        """Return those of them that run around the module and are not merged."""
        merged = self.peftkit_context.merged
        return [a for a in self.running([name for name in names if name not in merged]) if not a.inside]

    def _inside(self) -> list[list[Adapter]]:
        """Return the adapters inside the module for each portion, or those of all tokens."""
        context = self.peftkit_context
        chains = [context.active] if context.routing is None else [(name,) for name in context.routing.names]
        return [[adapter for adapter in self.running(names) if adapter.inside] for names in chains]

    def frozen_linear(self) -> Linear | None:
        """Return the weight [out, in] and bias of a linear layer of torch's own class, if both are frozen."""
        if type(self).__mro__[2] is not nn.Linear:
            return None
        weight, bias = cast(nn.Linear, self).weight, cast(nn.Linear, self).bias
        frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
        return (weight, bias) if frozen else None

    def only_adapter(self, names: Sequence[str | None]) -> Adapter | None:
        """Return the one adapter around the whole output, if it may say that it is a pair.

        Hooks, as those of a profile, want to see it run.
        """
        adapters = self.adaptersaround(names)
        return adapters[0] if len(adapters) == 1 and may_be_pair(adapters[0]) else None

    def _chain(self, call: Call, names: Sequence[str | None], linear: Linear | None) -> Call:
        """Return `call`, which is the frozen `linear` where one is given, inside the chain of its adapters."""
        for adapter in self.adaptersaround(names):
            call, linear = around(adapter, call, linear), None
        return call

    def _by_row(self, x: Tensor, routing: Routing) -> Tensor:
        """Return x with rows [B, T, width], which some models give to their feed-forward parts as [B * T, width]."""
        if routing.rows is None or x.dim() != 2 or not x.is_floating_point():
            return x
        return x.unflatten(0, (-1, routing.length(x, self.peftkit_context.shape)))

    def _route(self, frozen: Call, x: Tensor, routing: Routing, whole: bool) -> Tensor:
        """Send each portion through its own chain, around one frozen product of them all where that can be.

        With `whole` the frozen module sees the batch once and undivided. Ids may mean another soft prompt in each
        portion, and are looked up one portion at a time.
        """
        dimension, sizes = routing.dimension(x), routing.sizes
        product = cache(lambda: routing.order(frozen(x), dimension).split(sizes, dimension))
        ordered = routing.order(x, dimension)
        pieces: Sequence[Tensor] = ordered.split(sizes, dimension)
        calls: list[Call] = [partial(self._alone, frozen, name) for name in routing.names]
        linear = None
        if whole or x.is_floating_point():
            linear = None if whole else self.frozen_linear()
            calls = [
                known(mine, lambda place=place: product()[place], None if whole else call)
                for place, (mine, call) in enumerate(zip(pieces, calls, strict=True))
            ]
        parts = []
        for place, (name, call, mine) in enumerate(zip(routing.names, calls, pieces, strict=True)):
            with self._entered(routing, dimension, place):
                parts.append(self._portion(name, call, mine, linear is not None))
        if all(part is None for part in parts):
            return frozen(x)
        if linear is not None and not any(isinstance(part, Tensor) for part in parts):
            tokens = [mine.numel() // mine.shape[-1] for mine in pieces]
            (y,) = linears_with_pairs(ordered, [linear], [cast(list[Pair | None], parts)], tokens)
            return routing.restore(y, dimension)
        done = [settle(part, call, mine) for part, call, mine in zip(parts, calls, pieces, strict=True)]
        return routing.restore(torch.cat(done, dimension), dimension)

    def _portion(self, name: str | None, call: Call, x: Tensor, paired: bool) -> Tensor | Pair | None:
        """Return what the chain of a portion computes, or the pair that it adds to `call(x)`, or None for none."""
        adapters = self.adaptersaround((name,))
        if not adapters:
            return None
        only = self.only_adapter((name,)) if paired else None
        pair = None if only is None else only.pair(x)
        if pair is None:
            return self._chain(call, (name,), None)(x)
        return pair if pair.inside is x else add_pair(call(x), pair)

    @contextmanager
    def _entered(self, routing: Routing, dimension: int, place: int) -> Iterator[None]:
        """Have the adapters of spans that end here read what the span was given of one portion."""
        tape = self.peftkit_context.tape
        whole = {entry: tape[entry] for entry in self.entries if entry in tape}
        tape |= {
            entry: routing.order(self._by_row(x, routing), dimension).split(routing.sizes, dimension)[place]
            for entry, x in whole.items()
        }
        yield
        tape |= whole

    def _alone(self, frozen: Call, name: str | None, x: Tensor) -> Tensor:
        with self.peftkit_context.only(name):
            return frozen(x)


def _listen_at_entries(seat: Seat) -> None:
    """Have the first modules of the spans that end at a seat keep what they are given, and no others."""
    seated = [adapter for adapters in seat.seated.values() for adapter in cast(list[Adapter], adapters)]
    before, after = seat.entries, dict.fromkeys(adapter.site.entry for adapter in seated)
    seat.entries = tuple(entry for entry in after if entry is not None)
    for entry in before:
        for key in [key for key, hook in entry._forward_pre_hooks.items() if hook is _keep_input]:
            del entry._forward_pre_hooks[key]
            entry._forward_pre_hooks_with_kwargs.pop(key, None)
    for entry in seat.entries:
        entry.__dict__[LINK] = seat.peftkit_context
        entry.register_forward_pre_hook(_keep_input, with_kwargs=True)


def _keep_input(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    module.__dict__[LINK].tape[module] = args[0] if args else next(iter(named.values()))


@cache
def _first_parameter(cls: Any) -> str:
    frozen = next(base for base in cls.__mro__ if not issubclass(base, Seat))
    return list(inspect.signature(frozen.forward).parameters)[1]  # type: ignore[attr-defined]


@cache
def _seated_class(cls: type[nn.Module]) -> type[nn.Module]:
    own: dict[str, Any] = {"__module__": cls.__module__, "frozen_class": cls}
    if issubclass(cls, nn.Sequential):
        own["__iter__"] = _in_sequence
    return type(f"Seated{cls.__name__}", (Seat, cls), own)


def _in_sequence(self: nn.Sequential) -> Iterator[nn.Module]:
    """Iterate over what a sequence runs, which its adapters are no part of."""
    return (module for name, module in self._modules.items() if name != "seated" and module is not None)


def seat(adapter: Adapter, name: str, context: Context) -> None:
    """Seat an adapter on its site's module as part of the adaptation `name`, outside those already there."""
    module = adapter.site.module
    if not isinstance(module, Seat):
        module.__class__ = _seated_class(type(module))
        module.seated = nn.ModuleDict()
    module.__dict__[LINK] = adapter.__dict__[LINK] = context
    adapter.__dict__["adaptation"] = name
    seated = cast(Seat, module).seated
    if name not in seated:
        seated[name] = nn.ModuleList()
    cast(nn.ModuleList, seated[name]).append(adapter)
    _listen_at_entries(cast(Seat, module))


def unseat(module: nn.Module, name: str) -> None:
    """Take the adapters of the adaptation `name` off a module; the last one gives the module its own class back."""
    if not isinstance(module, Seat) or name not in module.seated:
        return
    del module.seated[name]
    _listen_at_entries(module)
    if not len(module.seated):
        del module.seated
        cast(Any, module).__class__ = type(module).__mro__[2]
