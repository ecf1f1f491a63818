"""A normal with standard deviation 1 / rank, B zero: the LoRA paper's words (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from typing import Any

from torch import nn

from peftkit.methods.inits import INITS


@INITS.register("gaussian")
def gaussian(adapter: Any) -> None:
    """Draw A [rank, in] from a normal distribution with standard deviation 1 / rank and set B [out, rank] to zero."""
    nn.init.normal_(adapter.A, std=1 / adapter.A.shape[0])
    nn.init.zeros_(adapter.B)
