"""LongLoRA and LongQLoRA: what they train and save, that they merge, and what of them other software gets."""

from __future__ import annotations

import pytest
import torch
from random_runs import write_random_run
from safetensors.torch import load_file

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.evaluation import prepare
from peftkit.export import export
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.methods.longlora import LongLoRA
from peftkit.methods.longqlora import LongQLoRA
from peftkit.models.quantize import Quantization, quantize
from peftkit.models.tiny import tiny
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.recipe import load as load_recipe

IDS = torch.randint(3, 96, (2, 11), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def randomise(adaptation):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def test_longlora_trains_pairs_of_attention_the_embedding_and_every_norm():
    model = tiny("llama", tie_word_embeddings=False)
    adaptation = attach(model, [LongLoRA(rank=3)])
    # Width 32, two heads of size 8 for keys and values, 96 tokens, two layers of two norms, one norm behind them.
    pairs = 2 * 3 * ((32 + 32) + 2 * (32 + 16) + (32 + 32))
    assert adaptation.trainable == pairs + 96 * 32 + 5 * 32
    own = {key.partition("own/")[2] for key in adaptation.state() if "own/" in key}
    norms = [f"model.layers.{i}.{name}_layernorm.weight" for i in (0, 1) for name in ("input", "post_attention")]
    assert own == {"model.embed_tokens.weight", "model.norm.weight", *norms}
    assert {rate for rate, _ in adaptation.rates(None)[:2]} == {LongLoRA().default_learning_rate}
    assert not any("lm_head" in key for key in adaptation.state())


def test_a_tied_head_is_told():
    lines = [
        line for part in LongLoRA().parts() for line in part.notices(Layout(tiny("llama", tie_word_embeddings=True)))
    ]
    assert "longlora: the head has the embedding's weight and is trained with it" in lines
    untied = Layout(tiny("llama", tie_word_embeddings=False))
    assert not [line for part in LongLoRA().parts() for line in part.notices(untied)]


@pytest.mark.parametrize("method", [LongLoRA(rank=3, group=4), LongQLoRA(rank=3, group=4)])
def test_they_merge_with_all_that_they_train(method):
    model = tiny("llama")
    base, adaptation = logits(model), attach(model, [method])
    randomise(adaptation)
    adapted = logits(model)
    assert (adapted - base).abs().max() > 0.01
    adaptation.merge_()
    torch.testing.assert_close(logits(model), adapted, atol=1e-4, rtol=1e-4)
    adaptation.unmerge_()
    adaptation.remove()
    assert torch.equal(logits(model), base)


def test_longqlora_stands_on_every_linear_map_of_a_packed_base():
    model = tiny("llama")
    quantize(model, Quantization(QUANTIZERS["nf4"]()))
    assert Layout(model).packed
    adaptation = attach(model, [LongQLoRA(rank=64)])
    places = {key.split("/")[1].rpartition(".")[2] for key, _ in adaptation.parameters()}
    assert places == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    # As wide as a map allows, and scaled by the rank that is asked for.
    shapes = {tuple(tensor.shape) for key, tensor in adaptation.parameters() if "k_proj/A" in key}
    assert shapes == {(16, 32)}
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for _, parameter in adaptation.parameters())


@pytest.mark.parametrize("method", [{"s2-attn": {"group": 8}}, {"longqlora": {"rank": 4}}])
def test_other_software_gets_the_pairs_alone(tmp_path, method):
    recipe = load_recipe({"model": "bundled/tiny", "method": method, "dataset": "bundled/e2e"})
    run = write_random_run(tmp_path / "run", recipe, 0.3)
    report = export(run, tmp_path / "hub", "hf-peft")
    assert report["max_difference"] <= report["bound"]
    assert all("lora_" in key for key in load_file(tmp_path / "hub" / "adapter_model.safetensors"))
    # What is evaluated is in the weights: nothing of the groups runs there.
    assert "default" in prepare(recipe, run / "adapter").adaptation.context.merged


def test_of_own_weights_a_folder_of_pairs_cannot_tell(tmp_path):
    recipe = load_recipe({"model": "bundled/tiny", "method": "longlora", "dataset": "bundled/e2e"})
    run = write_random_run(tmp_path / "run", recipe, 0.02)
    with pytest.raises(PeftkitError, match=r"combines several methods .*--format merged instead"):
        export(run, tmp_path / "hub", "hf-peft")
    export(run, tmp_path / "merged", "merged")


def test_the_names_are_methods_of_recipes():
    for name in ("longlora", "longqlora", "s2-attn"):
        recipe = load_recipe({"model": "bundled/tiny", "method": name, "dataset": "bundled/e2e"})
        assert [choice.name for choice in recipe.method] == [name]
        assert name in METHODS
