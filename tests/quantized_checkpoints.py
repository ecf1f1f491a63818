"""Tiny checkpoints that another library has quantized, with a tokenizer that fits them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from model_folders import byte_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from peftkit.models.quiet import quiet
from peftkit.models.tiny import tiny

BITSANDBYTES: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


def write_quantized(folder: Path, config: Any, architecture: str = "llama", **saving: Any) -> Path:
    """Write a tiny model that transformers quantizes as `config` says, and its tokenizer."""
    dense = folder.with_name(f"{folder.name}-dense")
    with quiet():
        tiny(architecture).save_pretrained(dense)
        model = AutoModelForCausalLM.from_pretrained(
            dense, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
        )
        model.save_pretrained(folder, **saving)
        byte_tokenizer().save_pretrained(folder)
    return folder


def write_bitsandbytes(folder: Path, kind: str, architecture: str = "llama", **saving: Any) -> Path:
    """Write a tiny model in a format of bitsandbytes."""
    return write_quantized(folder, BitsAndBytesConfig(**BITSANDBYTES[kind]), architecture, **saving)
