"""The principal part of the weight: PiSSA (Meng et al. 2024, arXiv:2404.02948)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftkit.methods.inits import INITS, Factorisation


@INITS.register("pissa")
@Factorisation
def pissa(adapter: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return A = sqrt(S / s) V^T and B = U sqrt(S / s) of the largest singular values, s the adapter's scale."""
    return principal(adapter, *torch.linalg.svd(weight, full_matrices=False))


def principal(adapter: Any, left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pair of the adapter's rank from U [out, n], S [n] and V^T [n, in], the largest value first."""
    rank = adapter.A.shape[0]
    roots = (values[:rank] / adapter.scale).sqrt()
    return roots[:, None] * right[:rank], left[:, :rank] * roots
