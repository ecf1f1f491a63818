"""Kronecker products of two matrices: their sides and factors, and the products without the large matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from peftkit.layout import Site


class Rule(nn.Module):
    """The factors A [n, n, n] that every matrix shares, from N(0, deviation^2)."""

    def __init__(self, division: int, deviation: float):
        super().__init__()
        self.A = nn.Parameter(torch.randn(division, division, division) * deviation)


def side(size: int, factor: int | None) -> int:
    """Return the side of the first matrix in a dimension of `size`: a divisor of it.

    It is `factor`, or the largest divisor below; without a factor the divisor next below the square root.
    """
    if factor is not None and size % factor == 0:
        return factor
    most = min(math.isqrt(size), factor or size)
    return next(candidate for candidate in range(most, 0, -1) if size % candidate == 0)


def factors(site: Site, rows: int, columns: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Return A [rows, columns] from the Kaiming uniform distribution (a = sqrt 5) and B, zero, of a map [out, in]."""
    A = nn.Parameter(torch.empty(rows, columns))
    nn.init.kaiming_uniform_(A, a=5**0.5)
    return A, nn.Parameter(torch.zeros(site.outputs // rows, site.inputs // columns))


def product(A: Tensor, B: Tensor, x: Tensor) -> Tensor:
    """Return (A kron B) x [..., a1 b1] for A [a1, a2], B [b1, b2] and x [..., a2 b2], in the dtype of x."""
    left, right = A.to(x.dtype), B.to(x.dtype)
    return (left @ x.unflatten(-1, (left.shape[1], right.shape[1])) @ right.T).flatten(-2)
