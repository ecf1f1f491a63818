"""No cache at all: the model reads the whole of every text for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from peftkit.generation.cache import ABSENT
from peftkit.generation.forward import Forward
from peftkit.ports.context import context_of


class WholeTexts:
    """Rows of tokens that end in the same column, `ABSENT` before their beginning."""

    def __init__(self, forward: Forward):
        self.forward = forward
        self.ids = torch.empty(0, 0, dtype=torch.long, device=forward.device)
        self.prompts = torch.empty(0, dtype=torch.long, device=forward.device)
        """[rows]: how many tokens of each row are its prompt, those that were read first."""

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.ids)

    def live_ids(self) -> Tensor:
        """Return the tokens [rows, columns]."""
        return self.ids

    def read(self, tokens: Tensor, last: Tensor) -> Tensor:
        """Add tokens [rows, new] and read everything; returns the logits [rows, vocabulary] after each row.

        Rows of one length are read together and without padding: what a model makes of it need not be known.
        """
        self.ids = torch.cat([self.ids, tokens], 1) if self.rows else tokens
        lengths = (self.ids != ABSENT).sum(1)
        self.prompts = self.prompts if len(self.prompts) else lengths
        parts: dict[int, Tensor] = {}
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            prompt = torch.arange(length, device=self.ids.device) < self.prompts[rows, None]
            with context_of(self.forward.model).prompted(prompt):
                logits = self.forward(self.ids[rows, -length:], use_cache=False, logits_to_keep=1).logits[:, -1]
            parts |= dict(zip(rows.tolist(), logits, strict=True))
        return torch.stack([parts[row] for row in range(self.rows)])

    def append(self, other: WholeTexts, ends: Tensor, copies: int) -> None:
        """Add the rows of another, each `copies` times."""
        width = max(self.ids.shape[1], other.ids.shape[1])
        mine, theirs = (
            functional.pad(ids, (width - ids.shape[1], 0), value=ABSENT)
            for ids in (self.ids, other.ids.repeat_interleave(copies, 0))
        )
        self.ids = torch.cat([mine, theirs])
        self.prompts = torch.cat([self.prompts, other.prompts.repeat_interleave(copies, 0)])

    def reorder(self, sources: Tensor, made: int) -> None:
        """Let each row continue row `sources[row]`."""
        self.ids, self.prompts = self.ids[sources], self.prompts[sources]

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Give rows `target` what rows `source` hold."""
        self.ids[target], self.prompts[target] = self.ids[source], self.prompts[source]

    def keep(self, rows: int) -> None:
        """Drop all rows behind the first `rows`, and the columns that only they have."""
        self.ids, self.prompts = self.ids[:rows], self.prompts[:rows]
        if rows:
            self.ids = self.ids[:, int((self.ids != ABSENT).any(0).long().argmax()) :]

    def past(self, row: int, length: int) -> None:
        """Return None: nothing is kept."""

    def begin_with(self, pasts: Sequence[Any]) -> None:
        """Start with nothing: no past is ever given."""
