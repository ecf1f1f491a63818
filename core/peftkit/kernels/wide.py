"""Values in float64, wherever they are."""

from __future__ import annotations

from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Return `x` in float64, on its device, or on the host where that is Apple's GPU, which has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()
