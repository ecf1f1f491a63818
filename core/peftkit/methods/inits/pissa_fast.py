"""PiSSA by a randomised decomposition, for large weights (Meng et al. 2024, arXiv:2404.02948)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftkit.methods.inits import INITS, Factorisation
from peftkit.methods.inits.pissa import principal

ITERATIONS = 16
"""As with `pissa_niter_16` in Hugging Face peft."""


@INITS.register("pissa-fast")
@Factorisation
def pissa_fast(adapter: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return nearly the pair of `pissa`, by subspace iteration (Halko et al. 2011, arXiv:0909.4061, algorithm 4.4).

    Twice as many directions as the rank are followed; products with W are all that it costs.
    """
    return principal(adapter, *leading(weight, adapter.A.shape[0], ITERATIONS))


def leading(weight: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return nearly the largest singular triplets U [out, n], S [n], V^T [n, in] of W, with n twice the rank."""
    width = min(2 * rank, *weight.shape)
    basis = torch.linalg.qr(weight @ torch.randn(weight.shape[1], width).to(weight.device))[0]
    for _ in range(iterations):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.T @ basis)[0])[0]
    left, values, right = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    return basis @ left, values, right
