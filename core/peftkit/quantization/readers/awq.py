"""4-bit layers in the layout of AWQ's checkpoints (Lin et al. 2023, arXiv:2306.00978).

`qweight` [in, out / 8] holds 8 columns' codes in each 32-bit word, `qzeros` [groups, out / 8] the zero points alike,
and `scales` [groups, out] the steps: w = (code - zero) * step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftkit.quantization.foreign import READERS, Reader

ORDER = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
"""The place in its word of each of 8 columns."""


def knows(module: Any) -> bool:
    """Say whether the layer has such tensors; kernels that shuffle them give them other sizes."""
    tensors = [getattr(module, key, None) for key in ("qweight", "qzeros", "scales")]
    if not all(isinstance(tensor, Tensor) and tensor.dim() == 2 for tensor in tensors):
        return False
    weight, zeros, scales = (list(tensor.shape) for tensor in tensors if tensor is not None)
    words, groups = module.out_features // 8, scales[0]
    return (weight, zeros, scales[1:]) == ([module.in_features, words], [groups, words], [module.out_features])


def weight(layer: Any) -> Tensor:
    """Return W [out, in] in the dtype of the scales."""
    size = layer.in_features // layer.scales.shape[0]
    codes = _codes(layer.qweight).unflatten(0, (-1, size))
    return ((codes - _codes(layer.qzeros).unsqueeze(1)) * layer.scales.unsqueeze(1)).flatten(0, 1).T


def _codes(words: Tensor) -> Tensor:
    """Return the 8 codes of each word in the order of their columns: [rows, words] -> [rows, 8 * words]."""
    shifts = 4 * ORDER.to(words)
    return ((words.unsqueeze(-1) >> shifts) & 15).flatten(-2)


READERS.add("awq", Reader("awq", ("gptqmodel", "accelerate"), knows, weight, {"backend": "torch_awq"}))
