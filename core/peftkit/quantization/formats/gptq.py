"""Whole numbers rounded so that each column takes up the error of those before it: GPTQ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from peftkit.quantization.bits import pack, pieces
from peftkit.quantization.calibrated import Calibrated
from peftkit.quantization.feedback import factor, round_in_turn
from peftkit.quantization.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class GPTQ(Calibrated, name="gptq"):
    """The codes of |W X - Q X|^2 by the update of the paper, on the grid that rounding to nearest has.

    The grid (scales and zero points) is that of W before the first column changes, as the official code's static
    groups. With 2 bits it is the base of INT2.1 (Chai et al. 2023, arXiv:2306.08162).
    """

    paper: ClassVar[str] = "Frantar et al. 2022, arXiv:2210.17323"
    summary: ClassVar[str] = (
        "Evenly spaced, 4 to 16 values a group; each column's error is taken up by the next, on examples."
    )

    damping: float = 0.01
    """What is added to the diagonal of the inputs' second moments, as a share of its mean."""
    by_size: bool = True
    """Round the columns with the largest inputs first, while the most others can take up their error."""

    def faults(self) -> list[str]:
        allowed = 0 < self.damping <= 1
        return [*super().faults(), *([] if allowed else [f"damping: found {self.damping}; allowed: above 0, up to 1"])]

    def encode_for(self, weight: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        size = self.group_size or weight.shape[1]
        parts, scale, zero = self.grid(weight.reshape(-1, size))
        scale, zero = scale.view(len(weight), -1), zero.view(len(weight), -1)
        moments = inputs.moments.to(weight.device)
        falling = moments.diagonal().argsort(descending=True, stable=True)
        order = falling if self.by_size else torch.arange(len(moments), device=weight.device)

        def nearest(values: Tensor, column: int) -> tuple[Tensor, Tensor]:
            step, middle = scale[:, column // size], zero[:, column // size]
            codes = self.nearest(values, step, middle)
            return codes.to(torch.uint8), (codes - middle) * step

        codes = round_in_turn(weight, factor(moments[order][:, order], self.damping), order, nearest)
        packed = [pack(codes[piece].flatten(), self.bits) for piece in pieces(codes)]
        return {"codes": torch.cat(packed), **parts}
