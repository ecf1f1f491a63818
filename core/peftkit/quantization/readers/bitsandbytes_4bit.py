"""4-bit layers of bitsandbytes (Dettmers et al. 2023, arXiv:2305.14314): nf4 and fp4, double quantization included."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from peftkit.quantization.foreign import READERS, Reader, named


def weight(layer: Any) -> Tensor:
    """Return W [out, in] in the dtype that it had when it was packed."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def knows(module: Any) -> bool:
    """Say whether the module is such a layer."""
    return named(module, "Linear4bit", "bitsandbytes")


READERS.add("bitsandbytes-4bit", Reader("bitsandbytes", ("bitsandbytes", "accelerate"), knows, weight, kernel=True))
