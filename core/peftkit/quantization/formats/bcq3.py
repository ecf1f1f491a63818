"""Binary codes of 3 bits, the format of AlphaTuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftkit.quantization.binary import Binary


@dataclass(frozen=True, kw_only=True)
class BCQ3(Binary, name="bcq3"):
    """The 8 sums of 3 scales with either sign, found for each output: binary-coding quantization."""

    bits: ClassVar[int] = 3
    summary: ClassVar[str] = "Sums of 3 scales with either sign, 8 values an output: the format of AlphaTuning."
