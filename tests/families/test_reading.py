"""A checkpoint that is read layer by layer is the one that transformers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from draw import marked
from model_folders import section
from torch import nn

import zoo
from peftkit.models import layerwise
from peftkit.models.load import load
from peftkit.recipe import QuantizationSection

NF4 = QuantizationSection(format="nf4", options={"block_size": 16})
ZEROED = ("youtu",)
"""Families that zero the embedding of padding whenever they are read."""
FAMILIES = [name for name in zoo.families() if name not in zoo.UNMADE]


@pytest.mark.parametrize("family", marked(FAMILIES, ["llama", "opt", "youtu"]))
def test_what_is_read_layer_by_layer_is_what_transformers_reads(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written = section(zoo.write(tmp_path / "model", family))
    whole = load(written)
    layer_by_layer = []

    def read(*args: Any) -> Any:
        layer_by_layer.append(original(*args))
        return layer_by_layer[-1]

    original = layerwise.read
    monkeypatch.setattr(layerwise, "read", read)
    packed = load(written, quantization=NF4)
    assert packed.fingerprint == whole.fingerprint
    held = dict(cast(nn.Module, packed.model).named_parameters())
    assert all(torch.equal(held[name], value) for name, value in whole.module.named_parameters() if name in held)
    embedding: Any = whole.model.get_input_embeddings()
    row = embedding.weight[0 if embedding.padding_idx is None else embedding.padding_idx]
    assert bool(row.any()) == (family not in ZEROED)
    assert family not in ("llama", *ZEROED) or layer_by_layer == [whole.fingerprint]
