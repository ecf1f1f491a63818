"""Layers of GPTQ checkpoints (Frantar et al. 2022, arXiv:2210.17323), as gptqmodel keeps them for its plain kernel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from peftkit.quantization.foreign import READERS, Reader, named


def weight(layer: Any) -> Tensor:
    """Return W [out, in] in the dtype of the scales."""
    # The one of the class: optimum has torch.compile wrap that of the layer.
    return type(layer).dequantize_weight(layer).T


def knows(module: Any) -> bool:
    """Say whether the layer is of the class that keeps the checkpoint's layout; others shuffle it."""
    return named(module, "TorchLinear", "gptqmodel")


SETTINGS = {"backend": "gptq_torch"}
READERS.add("gptq", Reader("gptq", ("gptqmodel", "optimum", "accelerate"), knows, weight, SETTINGS))
