"""Biases beside low-rank pairs in Hugging Face peft: the model's own, and those of the pairs themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import PREFIX, Config, Tensors
from peftkit.layout import Layout, own_parameters
from peftkit.method import Method
from peftkit.methods.ssf import SSF

BIASES = {"none": "none", "all": "all", "lora_only": "adapted"}
"""Our name of each choice of the model's own biases that are trained."""
SHIFT = ".lora_B.bias"


def bias_of(config: Mapping[str, Any]) -> str:
    """Return our name of a configuration's choice of biases."""
    found = config.get("bias") or "none"
    if found not in BIASES:
        raise PeftkitError(f"adapter_config.json: bias is {found!r}; read are {', '.join(BIASES)}.")
    return BIASES[found]


def taken(config: Mapping[str, Any], tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Take biases out of `tensors`: the model's own that were trained, by state key, and those of pairs, by path."""
    shifts = {key.removesuffix(SHIFT): tensors.pop(key).float() for key in list(tensors) if key.endswith(SHIFT)}
    own: Tensors = {}
    for key in list(tensors) if bias_of(config) != "none" else ():
        if key.endswith(".bias"):
            own[f"own/{key.removeprefix(PREFIX).replace('.base_layer.', '.')}"] = tensors.pop(key).float()
    return own, {path.removeprefix(PREFIX): shift for path, shift in shifts.items()}


def shifted(shifts: Tensors, scales: Mapping[str, float]) -> list[tuple[Method, Tensors]]:
    """Return what adds s b [out] behind each pair of scale s, a scale of ones and a shift; nothing for none."""
    stray = next((path for path in shifts if path not in scales), None)
    if stray is not None:
        raise PeftkitError(f"adapter_model.safetensors: there is a bias of a pair at {stray}, and no pair.")
    if not shifts:
        return []
    state = {f"{path}/beta": scales[path] * shift for path, shift in shifts.items()}
    state |= {f"{path}/gamma": torch.ones_like(shift) for path, shift in shifts.items()}
    return [(SSF(targets=tuple(shifts), shift="always"), state)]


def told(bias: str, method: Method, adapted: set[str], model: nn.Module) -> tuple[Config, Tensors]:
    """Return what says that biases of the model were trained, and their values."""
    theirs = next(key for key, ours in BIASES.items() if ours == bias)
    layout, tensors = Layout(model), {}
    for name, parameter in own_parameters(model):
        if method.select(layout, name, parameter):
            path = name.removesuffix(".bias")
            key = f"{path}.base_layer.bias" if path in adapted else name
            tensors[f"{PREFIX}{key}"] = parameter.detach()
    return {"bias": theirs}, tensors
