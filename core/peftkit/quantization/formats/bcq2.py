"""Binary codes of 2 bits, the format of AlphaTuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftkit.quantization.binary import Binary


@dataclass(frozen=True, kw_only=True)
class BCQ2(Binary, name="bcq2"):
    """The 4 sums of 2 scales with either sign, found for each output: binary-coding quantization."""

    bits: ClassVar[int] = 2
    summary: ClassVar[str] = "Sums of 2 scales with either sign, 4 values an output: the format of AlphaTuning."
