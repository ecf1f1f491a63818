"""Binary codes of 4 bits, the format of AlphaTuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftkit.quantization.binary import Binary


@dataclass(frozen=True, kw_only=True)
class BCQ4(Binary, name="bcq4"):
    """The 16 sums of 4 scales with either sign, found for each output: binary-coding quantization."""

    bits: ClassVar[int] = 4
    summary: ClassVar[str] = "Sums of 4 scales with either sign, 16 values an output: the format of AlphaTuning."
