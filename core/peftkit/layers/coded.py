"""Matrices of few values: codes of a book that suits normal numbers, times a standard deviation, and a mean."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from statistics import NormalDist

import torch
from torch import Tensor, nn

from peftkit.quantization.bits import pack, packed_size, unpack

SMALL = 1e-5
"""Added to the standard deviation that divides."""
ROUNDS = 500
"""Times that the values of a book are found by turns with the borders between them; they rest long before."""


@cache
def book(bits: int) -> tuple[float, ...]:
    """Return the 2^bits values of which each is the median of the standard normal numbers that it stands for.

    They are those nearest to it, which makes the mean distance least: -0.6745 and 0.6745 for one bit.
    """
    normal, count = NormalDist(), 1 << bits
    values = [normal.inv_cdf((number + 0.5) / count) for number in range(count)]
    for _ in range(ROUNDS):
        inner = [normal.cdf((low + high) / 2) for low, high in pairwise(values)]
        edges = [0.0, *inner, 1.0]
        values = [normal.inv_cdf((low + high) / 2) for low, high in pairwise(edges)]
    return tuple(values)


class Coded(nn.Module):
    """c(z) std + mean with z = (W - mean) / (std + 1e-5), W [rows, columns] in fp32; c is the nearest of the book.

    In training the gradient of c(z) is that of z; else c(z) is held. `packed`, it has the codes [bytes] uint8, the
    first in the highest bits, and mean and std [2], which training can move then, in the place of W.
    """

    codes: Tensor | None

    def __init__(self, rows: int, columns: int, bits: int, *, packed: bool):
        super().__init__()
        self.shape, self.bits = (rows, columns), bits
        self.W = None if packed else nn.Parameter(torch.zeros(rows, columns))
        self.stats = nn.Parameter(torch.zeros(2)) if packed else None
        codes = torch.zeros(packed_size(rows * columns, bits), dtype=torch.uint8)
        self.register_buffer("codes", codes if packed else None)

    def forward(self) -> Tensor:
        if self.stats is not None:
            assert self.codes is not None
            codes = unpack(self.codes, self.bits, self.shape[0] * self.shape[1]).view(self.shape)
            return self._values(self.stats)[codes.long()] * self.stats[1] + self.stats[0]
        z, mean, std = self._standardised()
        value = self._values(z)[self._code(z)]
        return (value + (z - z.detach()) if self.training else value) * std + mean

    @torch.no_grad()
    def pack(self) -> None:
        """Put the codes, the mean and the standard deviation in the place of W; the matrix is the same bit for bit."""
        if self.W is None:
            return
        z, mean, std = self._standardised()
        self.codes = pack(self._code(z).flatten().to(torch.uint8), self.bits)
        self.stats, self.W = nn.Parameter(torch.stack([mean, std])), None

    def _standardised(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.W is not None
        mean, std = self.W.mean(), self.W.std()
        return (self.W - mean) / (std + SMALL), mean, std

    def _values(self, like: Tensor) -> Tensor:
        return torch.tensor(book(self.bits), dtype=like.dtype, device=like.device)

    def _code(self, z: Tensor) -> Tensor:
        values = self._values(z)
        return torch.bucketize(z.detach(), (values[1:] + values[:-1]) / 2)
