"""Wanda: a weight counts as much as it is large and its input is (Sun et al. 2023, arXiv:2306.11695)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from peftkit.pruning import Pruner
from peftkit.quantization.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class Wanda(Pruner, name="wanda"):
    """S_ij = |W_ij| |x_j|_2 with the norm over all tokens of the examples, compared within each output (equation 1).

    Layer by layer, on what pruned layers before it give; no weight that stays changes. A map that no example reaches is
    compared by the size of its weights alone.
    """

    paper: ClassVar[str] = "Sun et al. 2023, arXiv:2306.11695"
    summary: ClassVar[str] = "The smallest products of a weight's size and its input's norm, in each output."

    @property
    def shown(self) -> bool:
        return True

    def scores(self, weight: Tensor, inputs: Inputs | None) -> Tensor:
        seen = inputs is not None and inputs.count
        return weight.abs() * inputs.norms.to(weight.device) if inputs is not None and seen else weight.abs()
