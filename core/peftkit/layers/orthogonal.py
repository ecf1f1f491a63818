"""Orthogonal matrices from free parameters, in blocks, and their products with activations.

Cayley: a skew-symmetric Q gives R = (I + Q)(I - Q)^-1, and every such R is orthogonal. Its series I + 2 Q + 2 Q^2 + …
needs no inverse and is orthogonal up to the terms that are left out (Qiu et al. 2025, arXiv:2506.19847).
"""

from __future__ import annotations

import torch
from torch import Tensor

from peftkit.kernels.wide import wide


def skew(values: Tensor, size: int) -> Tensor:
    """Return skew-symmetric matrices [..., size, size] from their upper triangles [..., size (size - 1) / 2]."""
    rows, columns = torch.triu_indices(size, size, 1, device=values.device)
    upper = values.new_zeros(*values.shape[:-1], size * size).index_add(-1, rows * size + columns, values)
    upper = upper.unflatten(-1, (size, size))
    return upper - upper.transpose(-2, -1)


def upper(matrices: Tensor) -> Tensor:
    """Return the upper triangles [..., n (n - 1) / 2] of matrices [..., n, n]: what `skew` takes."""
    size = matrices.shape[-1]
    rows, columns = torch.triu_indices(size, size, 1, device=matrices.device)
    return matrices[..., rows, columns]


def cayley(skewed: Tensor, terms: int | None = None) -> Tensor:
    """Return R [..., n, n] of skew-symmetric Q: exactly, or by the first `terms` powers of Q, the last one once."""
    one = torch.eye(skewed.shape[-1], device=skewed.device, dtype=skewed.dtype)
    if terms is None:
        # (I - Q)^-1 and (I + Q) commute.
        return torch.linalg.solve(one - skewed, one + skewed)
    result, power = one.expand_as(skewed), one.expand_as(skewed)
    for number in range(1, terms):
        power = power @ skewed
        result = result + (1 if number == terms - 1 else 2) * power
    return result


def turn(x: Tensor, blocks: Tensor) -> Tensor:
    """Return x R [..., n] in the dtype of x, R block-diagonal of `blocks` [n / size, size, size] or one for all."""
    parts = x.unflatten(-1, (-1, blocks.shape[-1]))
    subscripts = "...rk,kc->...rc" if blocks.shape[0] == 1 else "...rk,rkc->...rc"
    return torch.einsum(subscripts, parts, (blocks[0] if blocks.shape[0] == 1 else blocks).to(x.dtype)).flatten(-2)


def reflections(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return X and Y [n, r] with H_1 … H_r = I - Y X' for U [n, r] of even r and H_i = I - 2 u_i u_i' / |u_i|^2.

    It is I - V U' with V = U T, T triangular; its inverse has half the squared lengths on its diagonal and u_i' u_j
    above. X holds the first vector of each pair and what the second has beside it, so that a pair of equal vectors
    leaves nothing; V is found in float64.
    """
    precise = wide(vectors)
    products = precise.T @ precise
    inverse = products.triu(1) + torch.diag(products.diagonal() / 2)
    first, second = (
        torch.linalg.solve_triangular(inverse, precise, upper=True, left=False).unflatten(1, (-1, 2)).unbind(2)
    )
    one, other = vectors.unflatten(1, (-1, 2)).unbind(2)
    return torch.cat([one, other - one], 1), torch.cat([first + second, second], 1).to(vectors)
