"""Run folders as training leaves them, with an adapter of random values in place of a trained one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import write_model

from peftkit import files
from peftkit import recipe as recipes
from peftkit.adaptation import attach, save_adapter
from peftkit.models.load import load
from peftkit.models.loaded import LoadedModel

IDS = torch.arange(3, 40)[None]


@dataclass
class Run:
    """A run folder, and the adapted model that an export must equal."""

    folder: Path
    base: LoadedModel

    def logits(self) -> torch.Tensor:
        """Return the adapted model's logits."""
        with torch.no_grad():
            return self.base.model(IDS).logits


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Return a function that writes a run; `stored` is the base files' dtype, `model` more keys of the section.

    `base` is a folder that is there already.
    """

    def make(
        architecture: str,
        method: Any,
        stored: torch.dtype = torch.float32,
        quantization: Any = "none",
        dataset: Any = "e2e",
        base: Path | None = None,
        **model: Any,
    ) -> Run:
        name = str(base or write_model(tmp_path / "base", architecture, stored))
        sections = {"model": {"name": name, **model}, "method": method}
        recipe = recipes.load({**sections, "dataset": dataset, "quantization": quantization})
        files.write_text(tmp_path / "run" / "recipe.yaml", recipe.to_yaml())
        loaded = load(recipe.model, quantization=recipe.quantization)
        adaptation = attach(loaded.model, recipe.methods())
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for _, parameter in adaptation.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        told = {"name": loaded.name, "fingerprint": loaded.fingerprint, "quantization": loaded.storage}
        save_adapter(adaptation, tmp_path / "run" / "adapter", told)
        return Run(tmp_path / "run", loaded)

    return make
