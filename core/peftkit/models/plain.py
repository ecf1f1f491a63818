"""A model that transformers has read from packed weights, and that counts as an ordinary one from then on."""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedModel

MARKS = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
MARKS += ("_weight_conversions",)
"""The attributes by which transformers knows a quantized model, and how it would write one."""


def forget_quantization(model: PreTrainedModel) -> None:
    """Let a model that transformers has marked as quantized be moved and saved as any other."""
    for key in MARKS:
        model.__dict__.pop(key, None)
    if hasattr(model.config, "quantization_config"):
        del cast(Any, model.config).quantization_config
