"""Checkpoints of images and text as their processors and models are saved, tiny and random, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_folders import byte_tokenizer

import zoo
from peftkit.models.quiet import quiet

FAMILIES = ("gemma3", "llama4", "mistral3", "qwen3_5", "qwen3_vl", "qwen2_5_vl", "smolvlm", "idefics3")
FAMILIES += ("lfm2_vl", "internvl", "llava", "gemma4")
CHEAP = ("gemma3", "qwen3_5")
"""One whose files have names of their own and a tied head, and one of several kinds of layers."""
EACH = [pytest.param(f, marks=[] if f in CHEAP else [pytest.mark.thorough]) for f in FAMILIES]
PROCESSOR = "preprocessor_config.json"


def write_checkpoint(folder: Path, family: str, **saving: Any) -> Any:
    """Write a tiny checkpoint of 300 tokens with the files of its processor; return the whole model."""
    model: Any = zoo.image_text(family)
    with quiet():
        model.save_pretrained(folder, **saving)
        byte_tokenizer().save_pretrained(folder)
    (folder / PROCESSOR).write_text(json.dumps({"image_processor_type": "AnyImageProcessor", "size": {"height": 32}}))
    return model
