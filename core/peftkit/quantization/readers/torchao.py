"""Linear layers of torch whose weight is a tensor class of torchao (github.com/pytorch/ao)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from peftkit.quantization.foreign import READERS, Reader


def knows(module: Any) -> bool:
    """Say whether the weight is such a tensor."""
    return isinstance(module, nn.Linear) and type(module.weight.data).__module__.split(".")[0] == "torchao"


def weight(layer: Any) -> Tensor:
    """Return W [out, in] in the dtype that it had when it was packed."""
    return layer.weight.data.dequantize()


READERS.add("torchao", Reader("torchao", ("torchao", "accelerate"), knows, weight))
