"""An orthonormal basis of the weight: OLoRA (Büyükakyüz 2024, arXiv:2406.01775)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftkit.methods.inits import INITS, Factorisation


@INITS.register("olora")
@Factorisation
def olora(adapter: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first rows of R as A and the first columns of Q as B, where W = Q R; the scale stays outside."""
    rank = adapter.A.shape[0]
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]
