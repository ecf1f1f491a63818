"""From packed layers back to ordinary ones, for what is written as a plain model."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftkit.quantization.packed import StoredLinear


def unpack(model: PreTrainedModel, dtype: torch.dtype | None = None) -> list[str]:
    """Put a dense layer in the place of each packed one, whoever packed it; returns their paths.

    A layer has the class that the model's own code gives it, and the weight that it computed with: one that adapters
    are merged into keeps the merge. `dtype` None is the one that each weight was read in. Afterwards the model is saved
    as any other.
    """
    whole = cast(nn.Module, model)
    packed = {path: layer for path, layer in whole.named_modules() if isinstance(layer, StoredLinear)}
    if not packed:
        return []
    with torch.device("meta"):
        plain = type(model)(model.config)
    for path, layer in packed.items():
        whole.set_submodule(path, _dense(layer, plain.get_submodule(path), dtype or layer.dtype))
    return list(packed)


def _dense(layer: StoredLinear, plain: nn.Module, dtype: torch.dtype) -> nn.Module:
    with torch.no_grad():
        weight = layer.unpacked(dtype)
    made: Any = Conv1D(1, 1) if isinstance(plain, Conv1D) else nn.Linear(1, 1)
    if isinstance(plain, Conv1D):
        made.nx, made.nf = layer.in_features, layer.out_features
        weight = weight.T.contiguous()
    else:
        made.in_features, made.out_features = layer.in_features, layer.out_features
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(weight), requires_grad=False)
    return made.train(layer.training)
