"""The least part of the weight: MiLoRA (Wang et al. 2024, arXiv:2406.09044)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftkit.methods.inits import INITS, Factorisation


@INITS.register("milora")
@Factorisation
def milora(adapter: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return A = sqrt(S / s) V^T and B = U sqrt(S / s) of the smallest singular values, s the adapter's scale."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    rank = adapter.A.shape[0]
    roots = (values[-rank:] / adapter.scale).sqrt()
    return roots[:, None] * right[-rank:], left[:, -rank:] * roots
