"""Floating point of 4 bits: a sign, two exponent bits and one of mantissa."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftkit.quantization.blocks import Blockwise


@dataclass(frozen=True, kw_only=True)
class FP4(Blockwise, name="fp4"):
    """The values 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1 and their negatives; equal to bitsandbytes' FP4."""

    bits: ClassVar[int] = 4
    kernel: ClassVar[str | None] = "fp4"
    paper: ClassVar[str] = "Dettmers et al. 2023, arXiv:2305.14314"
    summary: ClassVar[str] = "4-bit floating point: evenly spread over magnitudes."

    code: ClassVar[tuple[float, ...]] = (
        *(0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12),
        *(-0.0, -0.0625 / 12, -8 / 12, -1.0, -4 / 12, -6 / 12, -2 / 12, -3 / 12),
    )
