"""Pruning by size (Han et al. 2015, arXiv:1506.02626), the baseline of every other way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from peftkit.pruning import Pruner
from peftkit.quantization.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class Magnitude(Pruner, name="magnitude"):
    """S_ij = |W_ij|, compared over the whole matrix, as where Wanda's paper compares itself with it."""

    paper: ClassVar[str] = "Han et al. 2015, arXiv:1506.02626"
    summary: ClassVar[str] = "The smallest weights of each matrix."

    def scores(self, weight: Tensor, inputs: Inputs | None) -> Tensor:
        return weight.abs()

    def compared(self, scores: Tensor) -> Tensor:
        return scores.view(1, -1)
