"""The keys and values of rows that come and go: written in place, and every row ends in the same column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from peftkit.generation.forward import Forward
from peftkit.generation.row_layers import Extent, Kind, RowLayer, append_states, keep_states, states_of
from peftkit.ports.body import kept_in

BLOCK = 64
"""Columns that are made beyond those in need, so that the memory moves only once in so many steps."""
ABSENT = -1
"""Stands in the ids where a row has no token."""


@dataclass(frozen=True)
class Past:
    """Keys and values of the beginning of one text, [groups, length, size] for each layer."""

    ids: list[int]
    layers: list[tuple[Tensor, Tensor] | None]


class RowCache(Cache):
    """A cache whose rows are texts that end in the same column, begin where they may, and are added and dropped.

    `ids` [height, width] holds the tokens beside their keys and values, `ABSENT` where there is none. The model is
    given them as one batch that is padded on the left. Convolutions' and recurrent states have no columns, and would
    see padding: rows that have such are read from their first token on and with others of the same length, and what
    is decoded together afterwards is a token of each.
    """

    def __init__(self, forward: Forward, name: str, kinds: Sequence[Kind], height: int, width: int):
        """Make a cache without rows; `name` is the model's argument for it, and `kinds` make its layers."""
        self.forward, self.name = forward, name
        self.extent = Extent(height, width)
        self.ids = torch.full((height, width), ABSENT, device=forward.device)
        super().__init__(layers=[kind(self.extent) for kind in kinds])
        self.masked = any(isinstance(layer, RowLayer) for layer in self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.extent.end - self.extent.begin

    @property
    def rows(self) -> int:
        """The number of live rows."""
        return self.extent.rows

    @property
    def held(self) -> list[RowLayer]:
        """The layers that hold keys and values."""
        return [layer for layer in self.layers if isinstance(layer, RowLayer) and layer.is_initialized]

    def live_ids(self) -> Tensor:
        """Return the tokens [rows, columns] of the live part."""
        return self.ids[: self.extent.rows, self.extent.begin : self.extent.end]

    def read(self, tokens: Tensor, last: Tensor) -> Tensor:
        """Have the model read the next tokens [rows, new], `ABSENT` behind what a row has; returns logits.

        They are those [rows, vocabulary] after token `last[row]` of each row.
        """
        new = tokens.shape[1]
        mask = self._write(tokens)
        given: dict[str, Any] = {self.name: self, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, -new:]}
        if self.masked:
            given["attention_mask"] = mask
        kept = last.unique() if new > 1 else last[:1]
        logits = self.forward(
            tokens.clamp(min=0), use_cache=True, logits_to_keep=kept if new > 1 else 1, **given
        ).logits
        self.extent.end += new
        if new == 1:
            return logits[:, -1]
        chosen = torch.searchsorted(kept, last) if logits.shape[1] == len(kept) else last
        return logits[torch.arange(len(tokens), device=tokens.device), chosen]

    def _write(self, tokens: Tensor) -> Tensor:
        """Set the next tokens [rows, new], whose keys and values the model is about to add; returns the mask."""
        extent, new = self.extent, tokens.shape[1]
        if extent.end + new > extent.width:
            self._move(extent.height, 0, extent.end - extent.begin + new + BLOCK)
        self.ids[: extent.rows, extent.end : extent.end + new] = tokens
        return (self.ids[: extent.rows, extent.begin : extent.end + new] != ABSENT).long()

    def append(self, other: RowCache, ends: Tensor, copies: int) -> None:
        """Add the rows of another cache, each `copies` times; row i's text ends before its column `ends[i]`."""
        begins = (other.live_ids() != ABSENT).long().argmax(1) + other.extent.begin
        longest, count = int((ends - begins).max()), len(ends) * copies
        self._make_room(self.extent.rows + count, longest)
        extent = self.extent
        rows, columns = slice(extent.rows, extent.rows + count), slice(extent.end - longest, extent.end)
        source = (ends[:, None] - longest) + torch.arange(longest, device=ends.device)
        outside, source = source < begins[:, None], source.clamp(min=0)
        ids = other.ids[: len(ends)].gather(1, source).masked_fill(outside, ABSENT)
        self.ids[rows] = ABSENT
        self.ids[rows, columns] = ids.repeat_interleave(copies, 0)
        for index, theirs in enumerate(other.layers):
            if not (isinstance(theirs, RowLayer) and theirs.is_initialized):
                continue
            mine = self._layer(index, theirs)
            for name in ("keys", "values"):
                states = getattr(theirs, name)[: len(ends)]
                at = source[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
                getattr(mine, name)[rows, :, columns] = states.gather(2, at).repeat_interleave(copies, 0)
        for mine, theirs in zip(states_of(self.layers), states_of(other.layers), strict=True):
            append_states(mine, theirs, copies)
        for key, theirs in kept_in(other).items():
            grown, mine = theirs[: len(ends)].repeat_interleave(copies, 0), kept_in(self).get(key)
            kept_in(self)[key] = grown if mine is None else torch.cat([mine, grown])
        extent.rows += count
        extent.begin = min(extent.begin, columns.start)
        self._trim()

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Give rows `target` what rows `source` hold."""
        for part in self._parts(self.extent.begin):
            part[target] = part.index_select(0, source)

    def reorder(self, sources: Tensor, made: int) -> None:
        """Let each row continue row `sources[row]`, which differs from it in the last `made` tokens at most."""
        for part in self._parts(self.extent.end - made):
            part.copy_(part.index_select(0, sources))

    def _parts(self, begin: int) -> Iterator[Tensor]:
        """Iterate over all that is held of the live rows from a column on; states have none and come whole."""
        extent = self.extent
        yield self.ids[: extent.rows, begin : extent.end]
        for layer in self.held:
            for states in (layer.keys, layer.values):
                assert states is not None
                yield states[: extent.rows, :, begin : extent.end]
        yield from kept_in(self).values()
        for layer in states_of(self.layers):
            for held in (layer.conv_states, layer.recurrent_states):
                yield from (states for states in held.values() if states is not None)

    def keep(self, rows: int) -> None:
        """Drop all rows behind the first `rows`."""
        self.extent.rows = rows
        kept_in(self).update({key: value[:rows] for key, value in kept_in(self).items()})
        for layer in states_of(self.layers):
            keep_states(layer, rows)
        self._trim()

    def past(self, row: int, length: int) -> Past | None:
        """Copy the first `length` tokens of a row, or return None where states stand after its last token alone."""
        if states_of(self.layers):
            return None
        extent = self.extent
        first = extent.begin + int((self.live_ids()[row] != ABSENT).long().argmax())
        part = slice(first, first + length)
        layers: list[tuple[Tensor, Tensor] | None] = []
        for layer in self.layers:
            if isinstance(layer, RowLayer) and layer.keys is not None and layer.values is not None:
                layers.append((layer.keys[row, :, part].clone(), layer.values[row, :, part].clone()))
            else:
                layers.append(None)
        return Past(self.ids[row, part].tolist(), layers)

    def begin_with(self, pasts: Sequence[tuple[Past | None, int]]) -> None:
        """Start an empty cache with rows that hold the first so many tokens of a past each."""
        extent = self.extent
        extent.rows, extent.end = len(pasts), max(length for _, length in pasts)
        for row, (past, length) in enumerate(pasts):
            if past is None or not length:
                continue
            columns = slice(extent.end - length, extent.end)
            self.ids[row, columns] = torch.tensor(past.ids[:length], device=self.ids.device)
            for index, states in enumerate(past.layers):
                if states is not None:
                    keys, values = (state[None, :, :length] for state in states)
                    layer = self._layer(index, keys, values)
                    layer.keys[row, :, columns], layer.values[row, :, columns] = keys[0], values[0]  # type: ignore[index]

    def _layer(self, index: int, *like: Any) -> RowLayer:
        """Return the layer `index`, with memory of the sizes of another layer or of keys and values."""
        layer = self.layers[index]
        assert isinstance(layer, RowLayer)
        if not layer.is_initialized:
            keys, values = (like[0].keys, like[0].values) if len(like) == 1 else like
            layer.lazy_initialization(keys, values)
        return layer

    def _trim(self) -> None:
        """Begin where the longest live row does."""
        if self.extent.rows:
            self.extent.begin += int((self.live_ids() != ABSENT).any(0).long().argmax())
        else:
            self.extent.begin = self.extent.end

    def _make_room(self, rows: int, longest: int) -> None:
        """See to it that so many rows and so many columns before the end are there."""
        extent = self.extent
        if rows <= extent.height and longest <= extent.end:
            return
        front = max(0, longest - (extent.end - extent.begin))
        self._move(max(rows, extent.height), front, max(extent.width, front + extent.end - extent.begin + BLOCK))

    def _move(self, height: int, front: int, width: int) -> None:
        """Move the live part to the columns from `front` on in memory of another size."""
        extent = self.extent
        kept, last = self.live_ids(), front + extent.end - extent.begin
        moved = kept.new_full((height, width), ABSENT)
        moved[: extent.rows, front:last] = kept
        self.ids = moved
        for layer in self.held:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                fresh = old.new_zeros(height, old.shape[1], width, old.shape[3])
                fresh[: extent.rows, :, front:last] = old[: extent.rows, :, extent.begin : extent.end]
                setattr(layer, name, fresh)
        extent.height, extent.width, extent.begin, extent.end = height, width, front, last
