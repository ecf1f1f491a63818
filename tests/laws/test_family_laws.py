"""Every family: its models are found, load with and without weights, have their roles, and are adapted and trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from peftkit import recipe as recipes
from peftkit.adaptation import attach
from peftkit.assembly import assemble
from peftkit.families import FAMILIES, check, family_of
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.models.load import load
from peftkit.models.tiny import ARCHITECTURES
from peftkit.objectives import OBJECTIVES
from peftkit.recipe import ModelSection
from peftkit.training import preparation, train

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ROLES = {"q", "k", "v", "o", "up", "down"}
LORA = {"lora": {"rank": 2, "targets": ["attention", "mlp"]}}
NAMES = FAMILIES.names()
IDS = torch.arange(3, 12)[None]


def section(name: str) -> ModelSection:
    """Describe a small random model of the family."""
    known = FAMILIES[name].architectures()
    architecture = next((one for one in ARCHITECTURES if one in known), sorted(known)[0])
    return ModelSection(init={"architecture": architecture, **SIZES}, tokenizer="bundled/tiny")


def learnt(objective: str, folder: Path) -> dict[str, Any]:
    """Return a section of a few examples: texts to continue, or with labels where the objective reads those."""
    if OBJECTIVES[objective].from_options({}).generates():
        return {"name": "bundled/e2e", "limit": 8}
    rows = [{"text": "ab"[number % 2] * 9, "label": number % 2} for number in range(8)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"name": "jsonl", "path": str(folder / "train.jsonl")}


def answered(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS)[0]


@pytest.mark.parametrize("name", NAMES)
def test_its_models_are_found_and_load(name):
    chosen = section(name)
    assert chosen.init is not None
    config = AutoConfig.for_model(chosen.init["architecture"])
    check(config, "here")
    assert family_of(config) is FAMILIES[name]
    whole, outline = load(chosen).module, load(chosen, device="meta", weights=False).module
    shapes = {key: tuple(tensor.shape) for key, tensor in whole.named_parameters()}
    assert shapes == {key: tuple(tensor.shape) for key, tensor in outline.named_parameters()}
    assert all(parameter.is_meta for parameter in outline.parameters())
    assert FAMILIES[name].objective in OBJECTIVES


@pytest.mark.parametrize("name", NAMES)
def test_every_block_has_its_roles(name):
    layout = Layout(load(section(name)).module)
    assert len(layout.blocks) == SIZES["num_hidden_layers"]
    for layer in range(len(layout.blocks)):
        assert {site.role for site in layout.linears if site.layer == layer} >= ROLES
    assert layout.width == SIZES["hidden_size"]
    assert layout.embedding().outputs == SIZES["hidden_size"]
    assert len(layout.hidden("attention")) == SIZES["num_hidden_layers"]


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_starts_as_the_base_acts_and_merges(name):
    model = load(section(name)).module.eval()
    base = answered(model)
    adaptation = attach(model, [METHODS["lora"].from_options(LORA["lora"])])
    assert torch.equal(answered(model), base)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.normal_()
    adapted = answered(model)
    assert (adapted - base).abs().max() > 1e-3
    adaptation.merge_()
    assert (answered(model) - adapted).abs().max() <= 1e-5 * max(1.0, adapted.abs().max().item())


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_it_and_its_run_opens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparation, "VALIDATION_EXAMPLES", 4)
    recipe = recipes.load(
        {
            "model": section(name).model_dump(),
            "method": LORA,
            "objective": FAMILIES[name].objective,
            "dataset": learnt(FAMILIES[name].objective, tmp_path),
            "train": {"max_steps": 2, "batch_examples": 4, "learning_rate": 0.01, "device": "cpu"},
        }
    )
    summary = train(recipe, tmp_path / "run")
    assert summary.steps == 2
    trained = assemble(recipe, tmp_path / "run" / "adapter", headed=True)
    assert trained.family is FAMILIES[name]
    fresh = assemble(recipe)
    assert not torch.equal(answered(trained.model), answered(fresh.model))
