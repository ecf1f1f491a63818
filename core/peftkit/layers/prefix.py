"""Keys and values in front of those of the text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftkit.layout import Site
from peftkit.ports.attention import Attend, AttentionAdapter


class Prefix(AttentionAdapter):
    """Free keys K [length, groups * size] and values V [length, groups * size] in front of those of the text."""

    def __init__(self, site: Site, length: int, deviation: float):
        super().__init__(site)
        self.K = nn.Parameter(torch.randn(length, site.parts["k"].outputs) * deviation)
        self.V = nn.Parameter(torch.randn(length, site.parts["v"].outputs) * deviation)

    def prefix(self) -> tuple[Tensor, Tensor]:
        """Return the keys and the values, each [length, groups * size]."""
        return self.K, self.V

    def forward(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        keys, values = (split(part, like) for part, like in zip(self.prefix(), (k, v), strict=True))
        seen = mask.new_ones(*mask.shape[:3], keys.shape[2])
        return attend(q, torch.cat([keys, k], 2), torch.cat([values, v], 2), torch.cat([seen, mask], 3))


def split(rows: Tensor, like: Tensor) -> Tensor:
    """Split rows [length, groups * size] into the heads of keys or values [B, groups, S, size]."""
    heads = rows.to(like.dtype).view(len(rows), like.shape[1], like.shape[3]).transpose(0, 1)
    return heads.expand(like.shape[0], -1, -1, -1)
