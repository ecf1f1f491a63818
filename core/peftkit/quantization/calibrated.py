"""Whole numbers in groups whose codes or scales are chosen by what a layer's inputs are on examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftkit.quantization.groups import Groupwise

WIDTHS = (2, 3, 4)
"""Bits of a code that a recipe may choose."""


@dataclass(frozen=True, kw_only=True)
class Calibrated(Groupwise):
    """The grid of `Groupwise` at a width that is an option; a weight whose inputs are not known is rounded to nearest.

    That is so of experts in stacks, of maps that no example reaches, and of what is packed anew later, as by a merge.
    """

    calibrated: ClassVar[bool] = True

    bits: int = 4  # pyright: ignore[reportIncompatibleVariableOverride]
    """Bits of a code: 2, 3 or 4."""

    def faults(self) -> list[str]:
        wrong = [] if self.bits in WIDTHS else [f"bits: found {self.bits}; allowed: 2, 3, 4"]
        return [*super().faults(), *wrong]
