"""Every command on an image-text checkpoint: it is a model as any other, and the whole of it comes out of a merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from image_text import EACH, write_checkpoint


@pytest.mark.parametrize("quantization", ["none", pytest.param("nf4", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("family", EACH)
def test_each_command_takes_an_image_text_checkpoint(family: str, quantization: str, peft: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", family)
    packed = {"format": quantization, "options": {"block_size": 32}} if quantization != "none" else quantization
    recipe = {
        "model": str(tmp_path / "model"),
        "method": {"lora": {"targets": "*_proj"}},
        "quantization": packed,
        "dataset": "bundled/e2e",
        "train": {"max_steps": 2, "batch_examples": 3, "device": "cpu", "max_length": 64},
        "generation": {"max_new_tokens": 4},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = tmp_path / "run"
    for command in (
        ("validate", tmp_path / "recipe.yaml"),
        ("estimate", tmp_path / "recipe.yaml"),
        ("train", tmp_path / "recipe.yaml", "--output", run),
        ("eval", run, "--limit", 3),
        ("merge", run, "--output", tmp_path / "merged"),
        ("export", run, "--format", "hf-peft", "--output", tmp_path / "adapter"),
    ):
        done = peft(*command)
        assert done.code == 0, f"{command}: {done.out}{done.err}"
