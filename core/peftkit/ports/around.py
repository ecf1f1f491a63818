"""One adapter around what it adapts: a linear map, rows of one, the end of a span, a portion of a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.kernels.low_rank import Linear, Pair, add_pair, linears_with_pairs
from peftkit.layout import Rows
from peftkit.ports.adapter import Adapter, Call


def settle(part: Tensor | Pair | None, call: Call, x: Tensor) -> Tensor:
    """Return the output of a portion from what `Seat._portion` returned for it."""
    if isinstance(part, Pair):
        return add_pair(call(x), part)
    return call(x) if part is None else part


def known(x: Tensor, y: Callable[[], Tensor], otherwise: Call | None = None) -> Call:
    def call(value: Tensor) -> Tensor:
        if value is not x and otherwise is not None:
            return otherwise(value)
        if value is not x:
            raise PeftkitError("an adapter that changes the input of a whole block cannot share a batch with others.")
        return y()

    return call


def around(adapter: Adapter, call: Call, linear: Linear | None) -> Call:
    rows = adapter.site.rows
    if adapter.site.entry is not None:
        return partial(_on_span, adapter, call)
    if rows is not None:
        return partial(_on_rows, adapter, call, rows)
    if linear is None or torch.compiler.is_compiling() or not may_be_pair(adapter):
        return partial(adapter, call)
    return partial(_on_linear, adapter, call, linear)


def may_be_pair(adapter: Adapter) -> bool:
    """Say whether an adapter of a whole module may add a pair and nothing else, which no hook wants to see."""
    return type(adapter).pair is not Adapter.pair and adapter.site.rows is None and not adapter._forward_pre_hooks


def _on_linear(adapter: Adapter, call: Call, linear: Linear, x: Tensor) -> Tensor:
    pair = adapter.pair(x)
    if pair is None:
        return adapter(call, x)
    if pair.inside is not x:
        return add_pair(call(x), pair)
    return linears_with_pairs(x, [linear], [[pair]])[0]


def _on_rows(adapter: Adapter, call: Call, rows: Rows, x: Tensor) -> Tensor:
    whole = call(x)
    return rows.put(whole, adapter(lambda value: rows.take(whole if value is x else call(value)), x))


def _on_span(adapter: Adapter, call: Call, x: Tensor) -> Tensor:
    """Run an adapter around modules one after the other, of which `call` is the last and x what that is given."""
    read = adapter.context.tape[adapter.site.entry]
    return adapter(known(read, lambda: call(x)), read)
