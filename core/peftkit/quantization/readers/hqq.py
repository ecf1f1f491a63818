"""Layers of HQQ (Badri and Shaji 2023, github.com/mobiusml/hqq)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from peftkit.quantization.foreign import READERS, Reader, named


def weight(layer: Any) -> Tensor:
    """Return W [out, in] in the layer's compute dtype."""
    return layer.dequantize()


def knows(module: Any) -> bool:
    """Say whether the module is such a layer."""
    return named(module, "HQQLinear", "hqq")


READERS.add("hqq", Reader("hqq", ("hqq", "accelerate"), knows, weight))
