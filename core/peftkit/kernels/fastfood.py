"""Fastfood: a random projection to many dimensions by Walsh-Hadamard transforms (Le et al. 2013, ICML 2013)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WIDEST = 6
"""A transform of 2^6 numbers is one product with a matrix; longer ones are several of these, each over 6 bits."""


def hadamard(x: Tensor) -> Tensor:
    """Return H x [..., n] for n a power of two, H the Walsh-Hadamard matrix of ones and minus ones: H H = n I."""
    shape, left = x.shape, x.shape[-1].bit_length() - 1
    while left:
        bits = min(left, WIDEST)
        # The lowest bits of the index are transformed and become the highest: after all of them the order is as before.
        x = (x.reshape(*shape[:-1], -1, 1 << bits) @ _matrix(bits, x)).transpose(-2, -1).reshape(shape)
        left -= bits
    return x


def _matrix(bits: int, like: Tensor) -> Tensor:
    matrix = like.new_ones(1, 1)
    for _ in range(bits):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def fastfood(z: Tensor, signs: Tensor, order: Tensor, normal: Tensor, count: int) -> Tensor:
    """Return `count` numbers of H G P H B z, scaled so that they keep the squared length of z on average.

    z [d] is padded with zeros to the length L of `signs` (B), `order` (the permutation P) and `normal` (G); the scale
    is 1 / (sqrt(L |G|^2) sqrt(count / L)), as in the official code of SAID.
    """
    size = len(signs)
    padded = torch.nn.functional.pad(z, (0, size - len(z)))
    mixed = hadamard(hadamard(padded * signs)[order] * normal)[:count]
    return mixed / (normal.norm() * math.sqrt(count))
