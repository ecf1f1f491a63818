"""Whole numbers of 4 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftkit.quantization.groups import Groupwise


@dataclass(frozen=True, kw_only=True)
class Int4(Groupwise, name="int4"):
    """16 evenly spaced values a group (the uniform rounding that LoftQ, arXiv:2310.08659, sets beside NF4)."""

    bits: ClassVar[int] = 4
    summary: ClassVar[str] = "Evenly spaced, 16 values a group of inputs, with or without a zero point."
