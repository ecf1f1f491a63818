"""The layers of a cache whose rows come and go: keys and values written in place, and states a row each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)


@dataclass
class Extent:
    """What part of the memory holds live rows: the first `rows` of `height`, columns `begin` to `end` of `width`."""

    height: int
    width: int
    rows: int = 0
    begin: int = 0
    end: int = 0


class RowLayer(CacheLayerMixin):
    """Keys and values [height, groups, width, size] of one layer, of which the model sees the live part."""

    is_sliding = False

    def __init__(self, extent: Extent):
        super().__init__()
        self.extent = extent

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros and not what the memory holds: a masked column must be a number, since it is multiplied by zero.
        self.keys, self.values = (
            states.new_zeros(self.extent.height, states.shape[1], self.extent.width, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        extent, end = self.extent, self.extent.end + key_states.shape[2]
        self.keys[: extent.rows, :, extent.end : end] = key_states
        self.values[: extent.rows, :, extent.end : end] = value_states
        return self.keys[: extent.rows, :, extent.begin : end], self.values[: extent.rows, :, extent.begin : end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.extent.end - self.extent.begin

    def get_max_length(self) -> int:
        return -1


class StateRowLayer(RowLayer, LinearAttentionAndFullAttentionLayer):
    """Keys and values as in `RowLayer`, beside the states of the same layer."""

    def __init__(self, extent: Extent, number_of_states: int):
        LinearAttentionAndFullAttentionLayer.__init__(self, number_of_states)
        self.extent = extent

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        # Keys and values come by position and states by name, as transformers calls its own layer of this kind.
        first = RowLayer if args else LinearAttentionLayer
        first.lazy_initialization(self, *args, **kwargs)


Kind = Callable[[Extent], Any]
"""Makes the layer of a cache that stands for one of the model's own cache."""


def kind_of(layer: Any) -> Kind | None:
    """Return what stands for a layer of the model's own cache, or None where its rows cannot come and go."""
    states = getattr(layer, "number_of_states", 0)
    kinds: dict[type, Kind] = {
        DynamicLayer: RowLayer,
        DynamicSlidingWindowLayer: RowLayer,
        LinearAttentionLayer: lambda extent: LinearAttentionLayer(states),
        LinearAttentionAndFullAttentionLayer: lambda extent: StateRowLayer(extent, states),
        LinearAttentionAndSlidingWindowAttentionLayer: lambda extent: StateRowLayer(extent, states),
        DummyLayer: lambda extent: DummyLayer(),
    }
    return kinds.get(type(layer))


def states_of(layers: Iterable[Any]) -> list[LinearAttentionCacheLayerMixin]:
    """Return the layers that keep convolutions' or recurrent states, a row of the batch each."""
    return [layer for layer in layers if isinstance(layer, LinearAttentionCacheLayerMixin)]


def append_states(mine: LinearAttentionCacheLayerMixin, theirs: LinearAttentionCacheLayerMixin, copies: int) -> None:
    """Add the rows of another layer's states, each `copies` times."""
    for held, others in ((mine.conv_states, theirs.conv_states), (mine.recurrent_states, theirs.recurrent_states)):
        for number, rows in others.items():
            if rows is not None:
                more, before = rows.repeat_interleave(copies, 0), held[number]
                held[number] = more if before is None else torch.cat([before, more])
    for name in ("is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state"):
        getattr(mine, name).update(getattr(theirs, name))
    mine.conv_kernel_size.update(theirs.conv_kernel_size)
    mine.device, mine.dtype = theirs.device, theirs.dtype


def keep_states(layer: LinearAttentionCacheLayerMixin, rows: int) -> None:
    """Drop the states of all rows behind the first `rows`."""
    for held in (layer.conv_states, layer.recurrent_states):
        for number, states in held.items():
            held[number] = None if states is None else states[:rows]
