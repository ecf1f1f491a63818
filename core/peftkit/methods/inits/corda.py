"""The principal part of the weight for the inputs at hand: CorDA (Yang et al. 2024, arXiv:2406.05223)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftkit.layers.probing import moments
from peftkit.methods.inits import INITS, Measured
from peftkit.methods.inits.pissa import principal

DAMPING = 0.01
"""Times the mean of the diagonal, added to the second moments until their inverse is one; doubled each time."""
ERROR = 0.05


def corda(adapter: Any, weight: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return A = sqrt(S / s) V^T C^-1 and B = U sqrt(S / s) of the largest singular values of W C, C = E[x x'].

    W = (W C) C^-1, so that the pair is a part of W; the mode of the paper that adapts to the instructions seen.
    """
    one, damping = torch.eye(len(seen), device=seen.device), DAMPING
    while True:
        damped = seen + one * seen.diagonal().mean() * damping
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, one) < ERROR:
            break
        damping *= 2
    left, values, right = torch.linalg.svd(weight @ damped, full_matrices=False)
    down, up = principal(adapter, left, values, right)
    return down @ inverse, up


INITS.add("corda", Measured(moments, corda, split=True))
