"""The one set-up: what each way to ask for a model holds, and what is refused before a weight is read."""

from __future__ import annotations

import pytest
import torch
from model_folders import write_model

from peftkit import recipe as recipes
from peftkit.adaptation import save_adapter
from peftkit.assembly import assemble, attach_methods, read_run
from peftkit.errors import PeftkitError

IDS = torch.arange(3, 12)[None]


@pytest.fixture
def recipe(tmp_path):
    chosen = {"model": str(write_model(tmp_path / "base")), "method": {"lora": {"rank": 2}}, "dataset": "bundled/e2e"}
    return recipes.load(chosen | {"quantization": "nf4", "train": {"device": "cpu", "precision": "fp32"}})


def logits(assembled):
    with torch.no_grad():
        return assembled.model(input_ids=IDS).logits


def test_fresh_adapters_stand_on_the_base_as_the_recipe_stores_it(recipe):
    bare, fresh = assemble(recipe, bare=True), assemble(recipe)
    assert bare.attached is None
    assert bare.methods is None
    assert [method["name"] for method in fresh.methods or ()] == ["lora"]
    assert torch.equal(logits(bare), logits(fresh))
    assert bare.storage == fresh.storage != assemble(recipe, bare=True, original=True).storage
    assert bare.fingerprint == fresh.fingerprint == assemble(recipe, bare=True, original=True).fingerprint


def test_without_weights_it_counts_the_same(recipe, tmp_path):
    real = assemble(recipe).adaptation
    (tmp_path / "base" / "model.safetensors").unlink()
    outline = assemble(recipe, weights=False)
    assert next(outline.model.parameters()).is_meta
    assert (outline.adaptation.trainable, outline.adaptation.total) == (real.trainable, real.total)


def test_a_trained_adapter_is_attached_to_what_it_was_trained_on(recipe, tmp_path):
    trained = assemble(recipe)
    for _, parameter in trained.adaptation.parameters():
        torch.nn.init.normal_(parameter)
    base = {"name": trained.name, "fingerprint": trained.fingerprint, "quantization": trained.storage}
    save_adapter(trained.adaptation, tmp_path / "adapter", base)
    assert torch.equal(logits(assemble(recipe, tmp_path / "adapter")), logits(trained))
    assert not torch.equal(logits(assemble(recipe, tmp_path / "adapter", original=True)), logits(trained))
    plain = recipe.model_copy(update={"quantization": recipe.quantization.model_copy(update={"format": "none"})})
    with pytest.raises(PeftkitError, match="trained on weights stored as nf4"):
        assemble(plain, tmp_path / "adapter")


def test_two_runs_stand_on_one_base(recipe):
    base = assemble(recipe, bare=True)
    one, other = attach_methods(base, recipe, "one"), attach_methods(base, recipe, "other")
    assert one.model is other.model is base.model
    assert (one.adaptation.name, other.adaptation.name, base.attached) == ("one", "other", None)


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(PeftkitError, match=r"not a run folder: there is no recipe\.yaml"):
        read_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text("{}")
    with pytest.raises(PeftkitError, match=r"did not finish.* and --resume, or score its base"):
        read_run(tmp_path, otherwise="score its base")
