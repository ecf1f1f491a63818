"""Adapters deeper in a model that act where the rows of their method's soft prompt stand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.layout import Site
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.own_attention import hollow


class Places(nn.Module):
    """What the adapters of such a method share: by it they find on the tape where the rows stand in a pass."""


class AtPrompt(Adapter):
    """An adapter that has something of its own for the rows of the soft prompt, and leaves other tokens as they are."""

    def __init__(self, site: Site):
        super().__init__(site)
        config = getattr(site.module, "config", None)
        self.streams = 0 if hasattr(config, "altup_num_inputs") else 2
        """The dimension of the streams where states have several: Gemma 3n has them in front of the batch."""

    @property
    def slots(self) -> Tensor | None:
        """The number of the prompt's row that each token is, [B, T] or [1, N], -1 for others; None without ids."""
        return self.context.tape.get(self.shared)


class AddedRows(AtPrompt):
    """Adds rows P [length, outputs] to what a module gives where the prompt stands.

    They start from N(0, deviation^2). Rows of the prompt behind the first `length` get none.
    """

    undecayed: tuple[str, ...] = ("P",)

    def __init__(self, site: Site, length: int, deviation: float):
        super().__init__(site)
        self.P = nn.Parameter(torch.randn(length, site.outputs) * deviation)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y, slots, length = call(x), self.slots, len(self.P)
        if slots is None:
            return y
        mine = F.embedding(slots.clamp(0, length - 1), self.P)
        mine = mine * ((slots >= 0) & (slots < length)).unsqueeze(-1)
        return y + in_streams(mine, y, self.streams).to(y.dtype)


def put_rows(x: Tensor, rows: Tensor, slots: Tensor, streams: int = 2) -> Tensor:
    """Return hidden states x [B, T, width] with the example's `rows` [B, length, width] where the prompt stands."""
    mine = rows.gather(1, slots.clamp(min=0).unsqueeze(-1).expand(-1, -1, rows.shape[2]))
    stands = (slots >= 0).unsqueeze(-1)
    return torch.where(in_streams(stands, x, streams), in_streams(mine, x, streams).to(x.dtype), x)


def in_streams(rows: Tensor, x: Tensor, streams: int) -> Tensor:
    """Return rows [B, T, ...] as they stand in states x: alike in each stream of those that have several.

    These have a dimension of their own, or lie behind each other in the last one.
    """
    if x.ndim == 4:
        return rows.unsqueeze(streams)
    return rows if rows.shape[-1] in (1, x.shape[-1]) else rows.repeat(1, 1, x.shape[-1] // rows.shape[-1])


def out_of_streams(x: Tensor, streams: int, width: int) -> Tensor:
    """Return hidden states [B, T, width]: the mean of the streams where a model has several."""
    if x.ndim == 4:
        return x.mean(streams)
    return x if x.shape[-1] == width else x.unflatten(-1, (-1, width)).mean(-2)


def absent(others: Tensor) -> bool:
    """Say whether all tokens are others than rows of the prompt, as in steps of decoding: those were made before."""
    return not hollow(others) and bool(others.all())
