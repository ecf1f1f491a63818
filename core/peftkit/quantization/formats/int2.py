"""Whole numbers of 2 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftkit.quantization.groups import Groupwise


@dataclass(frozen=True, kw_only=True)
class Int2(Groupwise, name="int2"):
    """4 evenly spaced values a group (the uniform rounding that LoftQ, arXiv:2310.08659, sets beside NF2)."""

    bits: ClassVar[int] = 2
    summary: ClassVar[str] = "Evenly spaced, 4 values a group of inputs, with or without a zero point."
