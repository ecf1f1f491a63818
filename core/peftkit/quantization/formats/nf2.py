"""NormalFloat of 2 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from peftkit.quantization.blocks import BLOCK_SIZES, Blockwise, normal_float


@dataclass(frozen=True, kw_only=True)
class NF2(Blockwise, name="nf2"):
    """4 values: the rule of `nf4` with fewer steps, which LoftQ (Li et al. 2023, arXiv:2310.08659) trains on."""

    bits: ClassVar[int] = 2
    code: ClassVar[tuple[float, ...]] = normal_float(2)
    budgeted: ClassVar[tuple[Mapping[str, Any], ...]] = BLOCK_SIZES
    paper: ClassVar[str] = "Dettmers et al. 2023, arXiv:2305.14314"
    summary: ClassVar[str] = "Normal quantiles, 4 values a block."
