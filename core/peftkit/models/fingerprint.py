"""A short proof of which base model an adapter was trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.layout import own_parameters

SAMPLES = 16
ESSENTIALS = ("model_type", "num_attention_heads", "num_key_value_heads", "rope_parameters")


def fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str | None:
    """Return the SHA-256 of what makes `model` itself: essential settings; names, shapes and samples of parameters.

    16 evenly spaced values of each parameter are taken, rounded to bfloat16, so that the same weights in fp32 and in
    bf16 give the same answer (`dtype`: as if loaded in this dtype first). Seated adapters do not count. None on the
    meta device, where there are no values.
    """
    parameters = list(own_parameters(model))
    if any(parameter.is_meta for _, parameter in parameters):
        return None
    return digest(model, {name: (list(p.shape), sample(p.detach(), dtype)) for name, p in parameters})


def digest(model: nn.Module, parameters: Mapping[str, tuple[list[int], Tensor]]) -> str:
    """Return the fingerprint of a model whose parameters have these shapes and samples, by name."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    essentials = {key: _value(text, key) for key in ESSENTIALS}
    ordered = sorted(parameters.items())
    shapes = [(name, shape) for name, (shape, _) in ordered]
    state = hashlib.sha256(json.dumps([essentials, shapes], sort_keys=True, default=str).encode())
    state.update(torch.cat([values for _, (_, values) in ordered]).cpu().view(torch.int16).numpy().tobytes())
    return state.hexdigest()


def _value(config: Any, key: str) -> Any:
    """Return the value of a configuration's key; None where it has none, or one for each layer."""
    try:
        return getattr(config, key, None)
    except RuntimeError:
        return None


def sample(parameter: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return up to 16 values spread over `parameter`, in bfloat16."""
    return sample_of(parameter, 0, 1, dtype)


def sample_of(part: Tensor, index: int, count: int, dtype: torch.dtype | None) -> Tensor:
    """Return those values of a parameter's sample that lie in one of its `count` equal parts, that of this index."""
    flat = part.reshape(-1)
    total, begin = flat.numel() * count, flat.numel() * index
    places = torch.linspace(0, max(total - 1, 0), min(SAMPLES, total), dtype=torch.float64).long()
    inside = places[(places >= begin) & (places < begin + flat.numel())] - begin
    return flat[inside.to(flat.device)].to(dtype or flat.dtype).to(torch.bfloat16)
