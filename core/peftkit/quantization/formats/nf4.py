"""NormalFloat of 4 bits, the format of QLoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from peftkit.quantization.blocks import BLOCK_SIZES, Blockwise


@dataclass(frozen=True, kw_only=True)
class NF4(Blockwise, name="nf4"):
    """16 values at quantiles of the normal distribution, which trained weights follow; equal to bitsandbytes' NF4."""

    bits: ClassVar[int] = 4
    budgeted: ClassVar[tuple[Mapping[str, Any], ...]] = BLOCK_SIZES
    kernel: ClassVar[str | None] = "nf4"
    paper: ClassVar[str] = "Dettmers et al. 2023, arXiv:2305.14314"
    summary: ClassVar[str] = "Normal quantiles, 16 values a block: the format of QLoRA."

    # Appendix E of the paper: `normal_float(4)` in another arithmetic, 1.2e-7 from it at most.
    code: ClassVar[tuple[float, ...]] = (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    )
