"""Random numbers that follow from the seed of a run, its step and a place, and from nothing that ran before."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


class Draws(nn.Module):
    """Draws by step and place: a resumed run, another packing and a recomputed pass draw the same.

    Its seed comes from the random state in which it is built, and is not saved: a resumed run builds it alike.
    """

    def __init__(self):
        super().__init__()
        drawn = torch.randint(1 << 62, (1,))
        self.seed = 0 if drawn.is_meta else int(drawn)

    @torch.compiler.disable()
    def below(self, count: int, *place: object) -> int:
        """Return a number from 0 to `count` - 1, each as likely as the others."""
        written = "/".join(map(str, (self.seed, *place)))
        return int.from_bytes(hashlib.sha256(written.encode()).digest()[:8], "little") % count
