"""Run folders without training: a recipe and an adapter whose weights are random."""

from __future__ import annotations

from pathlib import Path

import torch

from peftkit.adaptation import attach, save_adapter
from peftkit.models.load import load as load_model
from peftkit.recipe import Recipe


def write_random_run(folder: Path, recipe: Recipe, deviation: float) -> Path:
    """Write a run folder of `recipe` whose adapter has normal weights, so that its answers differ from the base's."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    loaded = load_model(recipe.model)
    adaptation = attach(loaded.model, recipe.methods())
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.normal_(std=deviation)
    save_adapter(adaptation, folder / "adapter", {"name": loaded.name, "fingerprint": loaded.fingerprint})
    return folder
