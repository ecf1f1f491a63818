"""U-BitFit learns which elements of the biases to train (Lawton et al. 2023, arXiv:2305.16597)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftkit.methods.s_bitfit import SBitFit


@dataclass(frozen=True, kw_only=True)
class UBitFit(SBitFit, name="u-bitfit"):
    """W x + b + z * v with v [out], zero at the start, and a gate in z [out] for each element.

    All else is `s-bitfit`: exactly the share `density` of the elements stays.
    """

    summary: ClassVar[str] = (
        "BitFit that learns which single elements of the biases are worth training, and trains these alone. Few "
        "numbers, each with its position."
    )
    default_learning_rate: ClassVar[float] = 0.018
    rate_searched: ClassVar[bool] = False
    by_element: ClassVar[bool] = True
