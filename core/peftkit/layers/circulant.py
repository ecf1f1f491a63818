"""Circulant and Toeplitz matrices from the numbers on their diagonals: products by FFT, and the matrices themselves."""

from __future__ import annotations

import torch
from torch import Tensor


def circulant(rows: Tensor) -> Tensor:
    """Return the matrices C [..., n, n] with first rows [..., n]: C[t, s] = row[(s - t) mod n]."""
    places = torch.arange(rows.shape[-1], device=rows.device)
    return rows[..., (places - places[:, None]) % rows.shape[-1]]


def product(x: Tensor, rows: Tensor) -> Tensor:
    """Return C x [..., blocks out, n] for x [..., blocks in, n] and C in circulant blocks [blocks out, blocks in, n].

    It is a circular correlation, by FFT in fp32 at least: n log n a block instead of n^2.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    spectra = torch.fft.rfft(x.to(precise)), torch.fft.rfft(rows.to(precise)).conj()
    return torch.fft.irfft(torch.einsum("...nf,mnf->...mf", *spectra), rows.shape[-1]).to(x.dtype)


def embedded(diagonals: Tensor) -> Tensor:
    """Return the first rows [..., 2 n] of circulants whose upper left [n, n] are the Toeplitz matrices T.

    T[t, s] = diagonals[s - t + n - 1], of `diagonals` [..., 2 n - 1].
    """
    middle = diagonals.shape[-1] // 2
    gap = diagonals.new_zeros(*diagonals.shape[:-1], 1)
    return torch.cat([diagonals[..., middle:], gap, diagonals[..., :middle]], -1)
