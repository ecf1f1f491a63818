"""The cache that the model's own code makes and carries, for rows of one length that are read to their end together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.generation.forward import Forward
from peftkit.ports.body import kept_in


class OwnCache:
    """Rows as transformers' `generate` decodes them: what the model returns as its cache is given back to it.

    Nothing is known of such a cache but how to reorder it, where it can. Rows that have left are read along, and
    `places` says which rows of the model are left.
    """

    def __init__(self, forward: Forward):
        self.forward = forward
        self.ids = torch.empty(0, 0, dtype=torch.long, device=forward.device)
        self.places = torch.empty(0, dtype=torch.long, device=forward.device)
        self.given: dict[str, Any] = {}
        """What the model is called with besides the tokens."""

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.places)

    def live_ids(self) -> Tensor:
        """Return the tokens [rows, columns]."""
        return self.ids[self.places]

    def read(self, tokens: Tensor, last: Tensor) -> Tensor:
        """Have the model read the next tokens [rows, new], all of them; returns the logits [rows, vocabulary]."""
        model, first = self.forward.model, not self.rows
        if first:
            self.ids, self.places = tokens, torch.arange(len(tokens), device=tokens.device)
            self.given = self._beginning(tokens)
        else:
            new = self.ids[:, -1:].clone()
            new[self.places] = tokens
            self.ids = torch.cat([self.ids, new], 1)
        inputs = model.prepare_inputs_for_generation(
            self.ids,
            next_sequence_length=None if first else 1,
            is_first_iteration=first,
            use_cache=True,
            **self.given,
        )
        outputs = model(**inputs, return_dict=True)
        self.given = model._update_model_kwargs_for_generation(outputs, self.given)
        return outputs.logits[self.places, -1]

    def _beginning(self, tokens: Tensor) -> dict[str, Any]:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        given = {"attention_mask": torch.ones_like(tokens), "position_ids": positions, "logits_to_keep": 1}
        return {name: value for name, value in given.items() if name in self.forward.named}

    def append(self, other: OwnCache, ends: Tensor, copies: int) -> None:
        """Take over the rows of another cache, each `copies` times; there must be none so far."""
        self.ids, self.places, self.given = other.ids, other.places, other.given
        if copies > 1:
            self.reorder(torch.arange(self.rows, device=self.ids.device).repeat_interleave(copies), 0)

    def reorder(self, sources: Tensor, made: int) -> None:
        """Let each row continue row `sources[row]`."""
        places, rows = self.places[sources], len(self.ids)
        for name, value in self.given.items():
            if hasattr(value, "reorder_cache"):
                value.reorder_cache(places)
                kept_in(value).update({key: kept[places] for key, kept in kept_in(value).items()})
            elif isinstance(value, Tensor) and value.dim() and len(value) == rows:
                self.given[name] = value[places]
        self.ids, self.places = self.ids[places], torch.arange(len(sources), device=self.ids.device)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Put rows `source` in the place of rows `target`, which have left; they leave their own."""
        self.places[target] = self.places[source]

    def keep(self, rows: int) -> None:
        """Drop all rows behind the first `rows`."""
        self.places = self.places[:rows]

    def past(self, row: int, length: int) -> None:
        """Return None: no part of a row can be had."""

    def begin_with(self, pasts: Sequence[Any]) -> None:
        """Start with nothing: no past is ever given."""
