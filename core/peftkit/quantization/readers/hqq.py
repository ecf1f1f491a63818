"""Layers of HQQ (Badri and Shaji 2023, github.com/mobiusml/hqq)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from peftkit.quantization.foreign import READERS, Reader, named


def weight(layer: Any) -> Tensor:
    """Return W [out, in] in the layer's compute dtype."""
    return layer.dequantize()


READERS.add(
    "hqq", Reader("hqq", ("hqq", "accelerate"), lambda module: named(module, "HQQLinear", "hqq"), weight, kernel=True)
)
