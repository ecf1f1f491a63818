"""Layers of GPTQ checkpoints (Frantar et al. 2022, arXiv:2210.17323) on the kernels of gptqmodel that can be read."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from peftkit.quantization.foreign import READERS, Reader

PLAIN = {"TorchLinear", "TritonV2Linear", "TorchQuantLinear", "TritonV2QuantLinear"}
"""The classes that keep the checkpoint's layout, whose reader is right; they are called so in gptqmodel 7, and in 5."""


def weight(layer: Any) -> Tensor:
    """Return W [out, in] in the dtype of the scales."""
    return layer.dequantize_weight().T


def knows(module: Any) -> bool:
    """Say whether the layer's class is one of those."""
    return type(module).__name__ in PLAIN


READERS.add("gptq", Reader("gptq", ("gptqmodel", "optimum", "accelerate"), knows, weight, kernel=True))
