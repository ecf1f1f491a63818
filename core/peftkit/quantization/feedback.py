"""Rounding column by column, each column's error taken up by those that follow: the update of GPTQ.

Frantar et al. 2022, arXiv:2210.17323, algorithm 1. With H = E[x x'] and U the upper Cholesky factor of its inverse
(U' U = H^-1), rounding column j of W [out, in] to q_j leaves e = (w_j - q_j) / U_jj, and every later column k changes
by -e U_jk, which is what keeps the layer's output nearest (equations 2 and 3, with the inverse of the columns that are
left read from the rows of U).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from peftkit.kernels.wide import wide

BLOCK = 128
"""Columns after which the update reaches the rest of the matrix; the paper's B. It changes no more than rounding."""
Round = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Returns codes [out] in uint8 and what they stand for [out] of the values [out] of the column with this number."""


def factor(moments: Tensor, damping: float) -> Tensor:
    """Return U [in, in] in fp32 of the moments H [in, in], whose diagonal grows by `damping` times its mean.

    Inputs that were always 0 have nothing to say of their weights, and are taken to be like the mean of the others.
    """
    held = wide(moments).clone()
    diagonal = held.diagonal()
    seen = diagonal > 0
    mean = diagonal[seen].mean() if bool(seen.any()) else diagonal.new_ones(())
    diagonal.copy_(torch.where(seen, diagonal, mean) + damping * mean)
    held = torch.linalg.cholesky(held)
    held = torch.cholesky_inverse(held)
    return torch.linalg.cholesky(held, upper=True).float().to(moments.device)


def round_in_turn(weight: Tensor, upper: Tensor, order: Tensor, nearest: Round) -> Tensor:
    """Return the codes [out, in] in uint8 of `weight` [out, in], whose columns are rounded in `order` [in].

    `upper` [in, in] is the factor of the moments in that order. A weight of 0 stays 0, whatever the columns before it
    leave: a pruned weight stays pruned, and its share goes on to the columns behind it.
    """
    # A column lies side by side in memory.
    left, places = weight.T[order], order.tolist()
    codes, zero = torch.empty(left.shape, dtype=torch.uint8, device=weight.device), left == 0
    for begin in range(0, len(places), BLOCK):
        end = min(begin + BLOCK, len(places))
        errors = torch.empty_like(left[begin:end])
        for at in range(begin, end):
            found, kept = nearest(left[at].masked_fill(zero[at], 0), places[at])
            error = (left[at] - kept) / upper[at, at]
            left[at + 1 : end].addmm_(upper[at, at + 1 : end, None], error[None], alpha=-1)
            codes[places[at]], errors[at - begin] = found, error
        left[end:].addmm_(upper[begin:end, end:].T, errors, alpha=-1)
    return codes.T.contiguous()
