"""Places of a soft prompt in layers that do not see it yet."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.layout import Site
from peftkit.ports.adapter import Call
from peftkit.ports.attention import Attend, AttentionAdapter, shut
from peftkit.ports.embedding import SoftPrompt


class BlankPrompt(SoftPrompt):
    """Rows of zeros, which nothing is trained of."""

    def forward(self, call: Call, x: Tensor) -> Tensor:
        soft = self.places(x)
        return call(x.masked_fill(soft, 0)).masked_fill(soft.unsqueeze(-1), 0)


class HiddenPrompt(AttentionAdapter):
    """Lets no token of the text see the rows of the prompt; those see each other, and nothing comes of it."""

    reads: ClassVar[Literal["", "tokens", "prompt"]] = "tokens"

    def __init__(self, site: Site, length: int):
        super().__init__(site)
        self.length = length

    def forward(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        slots = self.context.tape.get(self.shared)
        if slots is None:
            return attend(q, k, v, mask)
        hidden = (slots < 0)[:, None, :, None] & self.columns(slots, k.shape[2])[:, None, None]
        return attend(q, k, v, mask.masked_fill(hidden, shut(mask)))

    def columns(self, slots: Tensor, count: int) -> Tensor:
        """Return which of the last `count` keys [B, count] are rows of the prompt; keys of the text are the last."""
        positions = self.tokens.positions
        begin = self.once(lambda: _first(slots, positions))
        if bool((slots >= 0).any()):
            return F.pad(slots >= 0, (count - slots.shape[1], 0))
        # A row has no gaps: the keys end with the last token that is read.
        behind = positions[:, -1:] - torch.arange(count - 1, -1, -1, device=positions.device)
        return (behind >= begin[:, None]) & (behind < begin[:, None] + self.length)


def _first(slots: Tensor, positions: Tensor) -> Tensor:
    """Return the position of the first row of the prompt in each row of the batch."""
    return torch.where(slots >= 0, positions - slots, 0).amax(1)
