"""Whole numbers of 3 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftkit.quantization.groups import Groupwise


@dataclass(frozen=True, kw_only=True)
class Int3(Groupwise, name="int3"):
    """8 evenly spaced values a group (the uniform rounding that LoftQ, arXiv:2310.08659, sets beside NF3)."""

    bits: ClassVar[int] = 3
    summary: ClassVar[str] = "Evenly spaced, 8 values a group of inputs, with or without a zero point."
