"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from peftkit.optim import OPTIMIZERS


@OPTIMIZERS.register("adamw")
def adamw(groups: Sequence[dict[str, Any]], *, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Build AdamW over `groups` (each holds `params`, `lr` and `weight_decay`), one fused kernel per tensor."""
    fused = all(
        parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point()
        for group in groups
        for parameter in group["params"]
    )
    return torch.optim.AdamW(list(groups), betas=betas, eps=eps, fused=fused)
