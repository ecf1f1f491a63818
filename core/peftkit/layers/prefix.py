"""Keys and values in front of those of the text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftkit.layout import Site
from peftkit.ports.attention import Attend, AttentionAdapter, opened


class Prefix(AttentionAdapter):
    """Free keys K and values V, each [length, groups * size], in front of those of the text.

    With `shift` the text's positions begin behind those of the prefix.
    """

    undecayed: tuple[str, ...] = ("K", "V")

    def __init__(self, site: Site, length: int, deviation: float, shift: bool = False):
        super().__init__(site)
        assert site.heads is not None
        self.moves, self.row_size = length if shift else 0, site.heads.keys + site.heads.values
        self.K = nn.Parameter(torch.randn(length, site.heads.keys) * deviation)
        self.V = nn.Parameter(torch.randn(length, site.heads.values) * deviation)

    def prefix(self) -> tuple[Tensor, Tensor]:
        """Return the keys and the values, each [length, groups * size]."""
        return self.K, self.V

    def forward(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        parts = self.prefix()
        self.tell(torch.cat(parts, 1))
        keys, values = (split(part, like) for part, like in zip(parts, (k, v), strict=True))
        seen = opened(mask, keys.shape[2])
        return attend(q, torch.cat([keys, k], 2), torch.cat([values, v], 2), torch.cat([seen, mask], 3))


def split(rows: Tensor, like: Tensor) -> Tensor:
    """Split rows [length, groups * size] into the heads of keys or values [B, groups, S, size]."""
    heads = rows.to(like.dtype).view(len(rows), like.shape[1], like.shape[3]).transpose(0, 1)
    return heads.expand(like.shape[0], -1, -1, -1)
