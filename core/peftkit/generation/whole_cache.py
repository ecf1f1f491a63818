"""The cache of models that keep more than keys and values: their rows are read together, and can only leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import get_layer_types_and_kwargs

from peftkit.generation.cache import ABSENT

ROWS = frozenset({"full_attention", "sliding_attention"})
"""The kinds of layers whose rows a `RowCache` can hold."""


def keeps_rows(config: Any) -> bool:
    """Say whether every layer of a model keeps keys and values alone, so that rows can be moved and begun with."""
    return ROWS.issuperset(get_layer_types_and_kwargs(config.get_text_config(decoder=True))[0])


class WholeCache(DynamicCache):
    """What `RowCache` does, without adding to rows that are there and without beginning with what is known.

    A convolution or a recurrent state runs over all that a row is given, so prompts are padded on the left, where
    these models leave padding out.
    """

    refills = False

    def __init__(self, config: Any, device: torch.device):
        super().__init__(config=config)
        self.ids = torch.empty(0, 0, dtype=torch.long, device=device)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.ids.shape[0]

    def live_ids(self) -> Tensor:
        """Return the tokens [rows, columns]."""
        return self.ids

    def write(self, tokens: Tensor) -> Tensor:
        """Set the next tokens [rows, new], which the model is about to read; returns the mask."""
        self.ids = tokens if not self.rows else torch.cat([self.ids, tokens], 1)
        return (self.ids != ABSENT).long()

    def advance(self, new: int) -> None:
        """Take what the model has read as live: it is."""

    def append(self, other: WholeCache, ends: Tensor, copies: int) -> None:
        """Take over the rows of another cache, each `copies` times; there must be none so far."""
        self.layers, self.ids = other.layers, other.ids
        if copies > 1:
            # Layers with a recurrent state can be reordered, and not repeated.
            self.reorder(torch.arange(self.rows, device=self.ids.device).repeat_interleave(copies), 0)

    def reorder(self, sources: Tensor, made: int) -> None:
        """Let each row continue row `sources[row]`."""
        self.ids = self.ids[sources]
        self.reorder_cache(sources)  # type: ignore[arg-type]

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Give rows `target` what rows `source` hold."""
        order = torch.arange(self.rows, device=self.ids.device)
        order[target] = source
        self.reorder(order, 0)

    def keep(self, rows: int) -> None:
        """Drop all rows behind the first `rows`."""
        self.reorder(torch.arange(rows, device=self.ids.device), 0)

    def past(self, row: int, length: int) -> None:
        """Return None: no part of a row's state can be had."""

    def begin_with(self, pasts: Sequence[Any]) -> None:
        """Start with nothing: no past is ever given."""
