"""What the body of a model is given in a pass, as adapters may ask for it: ids, positions, and what is the prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """The tokens of a pass [B, T], or [1, N] along trees; of a portion of a batch its own."""

    ids: Tensor
    positions: Tensor
    """The place of each token in its row, soft prompts counted; -1 for padding, where a mask tells of it."""
    rows: Tensor
    """The row of the batch that each token stands in."""
    batch: int
    """How many rows the batch has."""
    told: Tensor | None = None
    """True for the tokens of the prompt that is answered; None where nobody tells."""
    soft: int = 0
    """How many rows of soft prompts stand in front of each text."""
    first: int | None = None
    """The id from which on tokens are rows of soft prompts."""
    keys: Tensor | None = None
    """The number of the key of each token's row, -1 where it has none; None where no adapter asks for it."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        """Return them with every tensor changed alike."""
        tensors = {name: getattr(self, name) for name in ("ids", "positions", "rows", "told", "keys")}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items() if tensor is not None})

    @property
    def index(self) -> Tensor:
        """The place of each token in its text, without soft prompts.

        They stand behind a beginning-of-sequence token, which is in its place 0 with and without them.
        """
        return self.positions - self.soft * (self.positions >= self.soft)

    def last(self, x: Tensor) -> Tensor:
        """Return what x [B, T, ...] is at the last token of each row's prompt: [B, ...]."""
        prompt = self.prompt
        last = (prompt * torch.arange(1, 1 + prompt.shape[1], device=prompt.device)).argmax(1)
        return x[torch.arange(len(x), device=x.device), last]

    @property
    def prompt(self) -> Tensor:
        """Which tokens are the prompt: those that are told, and the first one of the text in any case.

        It alone is where nobody tells, so that no token depends on one behind it. Soft rows are no part of it.
        """
        begins = self.index == 0
        prompt = begins if self.told is None else begins | self.told
        return prompt if self.first is None else prompt & (self.ids < self.first)
