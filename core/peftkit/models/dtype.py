"""The dtype in which a model is loaded."""

from __future__ import annotations

import torch

from peftkit.recipe import ModelSection


def chosen(choice: str, device: torch.device, own: torch.dtype | None) -> torch.dtype:
    """Return the dtype that `model.dtype` chooses for a checkpoint in `own`.

    `auto` is fp32 on the CPU, and elsewhere the checkpoint's own (bfloat16 for float16).
    """
    if choice != "auto":
        return getattr(torch, choice)
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if own == torch.float16 else own or torch.float32


def of_fingerprint(section: ModelSection) -> torch.dtype | None:
    """Return the dtype in which a fingerprint takes the weights.

    It is the recipe's own, so that merging in fp32 recognises a base that was trained on in float16.
    """
    return None if section.dtype == "auto" else getattr(torch, section.dtype)
