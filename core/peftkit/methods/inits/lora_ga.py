"""The directions of the first gradient: LoRA-GA (Wang et al. 2024, arXiv:2407.05000)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from peftkit.layers.probing import gradients
from peftkit.methods.inits import INITS, Measured

GAMMA = 16
"""The paper's gamma: the larger, the smaller the start."""


def lora_ga(adapter: Any, weight: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return A = c V_1..r' and B = c U_r+1..2r of the gradient's singular vectors, c = out^(1/4) / sqrt(gamma).

    The first step then moves s B A along the 2 r leading directions of the full gradient. Where twice the rank is more
    than the smaller side, B has the last columns.
    """
    left, _, right = torch.linalg.svd(seen, full_matrices=False)
    rank, factor = adapter.A.shape[0], weight.shape[0] ** 0.25 / math.sqrt(GAMMA)
    last = min(2 * rank, left.shape[1])
    return right[:rank] * factor, left[:, last - rank : last] * factor


INITS.add("lora-ga", Measured(gradients, lora_ga, split=True))
