"""Merging a run on a quantized base: into the weights that the user chooses, compared with the model as trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import section, write_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from peftkit import recipe as recipes
from peftkit.errors import PeftkitError
from peftkit.export import merge
from peftkit.export.packed import quantize
from peftkit.models.load import load
from peftkit.models.quiet import quiet
from peftkit.models.samples import logits as on_samples
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.weight import dense

IDS = torch.arange(3, 40)[None]
LINEAR = {"lora": {"targets": "linear"}}
QUERIES = {"lora": {"targets": ["q"]}}
HEAD = {"lora": {"targets": ["q", "down", "head"]}}
NF4 = {"format": "nf4", "block_size": 16}
METHODS = {
    "lora": LINEAR,
    "a few": QUERIES,
    "dora": {"dora": {"targets": "linear"}},
    "pissa": {"lora": {"targets": "linear", "init": "pissa"}},
    "loftq": {"lora": {"targets": "linear", "init": "loftq"}},
    "biases and norms": [QUERIES, "layernorm-tuning"],
    "ia3": "ia3",
}


def logits(folder: Path, **keys: Any) -> torch.Tensor:
    with quiet(), torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, **keys).eval()(IDS).logits.float()


@pytest.mark.parametrize(
    ("architecture", "method"),
    [("llama", name) for name in METHODS] + [("gpt2", "loftq"), ("gpt2", "biases and norms")],
)
def test_the_dequantized_base_with_the_adapter_is_the_trained_model(
    architecture: str, method: str, make_run: Any, tmp_path: Path
) -> None:
    run = make_run(architecture, METHODS[method], quantization=NF4)
    report = merge(run.folder, tmp_path / "merged", into="dequantized")
    torch.testing.assert_close(logits(tmp_path / "merged"), run.logits(), atol=1e-4, rtol=0)
    assert report["trained_max_difference"] == report["max_difference"] <= 1e-4
    assert report["into"] == "dequantized"


def test_untouched_layers_are_dequantized_too_and_the_rest_stays_bit_for_bit(make_run: Any, tmp_path: Path) -> None:
    run = make_run("llama", QUERIES, torch.bfloat16, quantization=NF4)
    merge(run.folder, tmp_path / "merged", into="dequantized")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    before = load_file(tmp_path / "base" / "model.safetensors")
    packed = {name for name, module in run.base.model.named_modules() if isinstance(module, PackedLinear)}
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    for name, tensor in merged.items():
        path = name.removesuffix(".weight")
        if path not in packed:
            assert torch.equal(tensor, before[name]), name
        elif "q_proj" not in name:
            assert torch.equal(tensor, dense(run.base.model.get_submodule(path)).to(torch.bfloat16)), name


def test_the_original_weights_are_the_default_and_the_difference_to_the_trained_model_is_told(
    make_run: Any, tmp_path: Path
) -> None:
    run = make_run("llama", LINEAR, quantization=NF4)
    report = merge(run.folder, tmp_path / "merged")
    base = load(section(tmp_path / "base"))
    found, trained = logits(tmp_path / "merged"), run.logits()
    assert report["into"] == "original"
    assert report["max_difference"] <= 1e-4 < report["trained_max_difference"]
    assert report["trained_mean_difference"] <= report["trained_max_difference"]
    assert (found - trained).abs().max() > 1e-3
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    adapters = run.base.model.__dict__["_peftkit"].adaptations["default"].parts[0].adapters
    for adapter in adapters.values():
        path = adapter.site.path
        weight = dense(base.model.get_submodule(path))
        torch.testing.assert_close(merged[f"{path}.weight"], weight + adapter.delta(weight), atol=1e-5, rtol=0)


@pytest.mark.parametrize("into", ["original", "dequantized"])
def test_what_packing_again_costs_is_that_of_the_folder_loaded_in_the_same_formats(
    into: str, make_run: Any, tmp_path: Path
) -> None:
    run = make_run("llama", LINEAR, quantization={"default": "nf4", "layers.0.*": "int8"})
    report = merge(run.folder, tmp_path / "merged", into=into)
    chosen = recipes.load(run.folder / "recipe.yaml").quantization
    again = load(section(tmp_path / "merged"), quantization=chosen)
    difference = (on_samples(again.model, again.tokenizer) - on_samples(run.base.model, run.base.tokenizer)).abs()
    assert report["requantized_max_difference"] == pytest.approx(float(difference.max()), rel=1e-3)
    assert report["requantized_mean_difference"] == pytest.approx(float(difference.mean()), rel=1e-3)
    assert report["requantized_max_difference"] > 10 * report["max_difference"]


@pytest.mark.parametrize("into", ["original", "dequantized"])
def test_packed_again_it_is_the_packed_folder_of_the_merged_weights(into: str, make_run: Any, tmp_path: Path) -> None:
    run = make_run("llama", HEAD, torch.bfloat16, quantization={"default": "int8", "layers.0.*": "nf4"})
    merge(run.folder, tmp_path / "plain", into=into)
    report = merge(run.folder, tmp_path / "packed", into=into, requantize=True, bound=0.9)
    packed = load(section(tmp_path / "packed"))
    chosen = recipes.load(run.folder / "recipe.yaml").quantization
    again = load(section(tmp_path / "plain"), quantization=chosen)
    assert packed.storage == run.base.storage
    assert packed.fingerprint == again.fingerprint
    expected = again.model.state_dict()
    assert set(packed.model.state_dict()) == set(expected)
    for name, tensor in packed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    difference = on_samples(packed.model, packed.tokenizer) - on_samples(run.base.model, run.base.tokenizer)
    assert report["requantized_max_difference"] == pytest.approx(float(difference.abs().max()), rel=1e-3)
    assert report["requantized_max_difference"] <= report["requantized_bound"]
    assert not (tmp_path / "packed" / "plain").exists()
    assert not list((tmp_path / "packed").glob("model*"))


def test_a_run_on_a_folder_of_packed_weights_is_merged_into_what_they_stand_for(make_run: Any, tmp_path: Path) -> None:
    write_model(tmp_path / "base", "gpt2", torch.bfloat16)
    quantize(str(tmp_path / "base"), "nf4", tmp_path / "stored", ["block_size=16"])
    run = make_run("gpt2", LINEAR, torch.bfloat16, base=tmp_path / "stored")
    with pytest.raises(PeftkitError, match=r"holds packed weights alone.*--into dequantized"):
        merge(run.folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    report = merge(run.folder, tmp_path / "merged", into="dequantized")
    assert report["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    found = logits(tmp_path / "merged", dtype=torch.float32)
    assert (found - run.logits()).abs().max() <= 5e-2 * run.logits().abs().max()


def test_packing_again_beyond_the_bound_is_refused_and_nothing_is_left(make_run: Any, tmp_path: Path) -> None:
    run = make_run("llama", LINEAR, quantization="nf2")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(PeftkitError, match=r"differ from the trained model's by up to .* and 0\.001 of it is allowed"):
        merge(run.folder, tmp_path / "merged", requantize=True, bound=0.001)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"into": "dequantized"}, "--into dequantized is for a run on a quantized base"),
        ({"requantize": True}, "--requantize is for a run on a quantized base"),
        ({"into": "orignal"}, "Did you mean 'original'"),
        ({"bound": 0.5}, "--bound is what --requantize keeps to"),
        ({"requantize": True, "bound": 0.0}, "--bound: found 0.0"),
        ({"requantize": True, "bound": float("nan")}, "--bound: found nan"),
    ],
)
def test_choices_without_a_meaning_are_refused(options: Any, told: str, make_run: Any, tmp_path: Path) -> None:
    run = make_run("llama", QUERIES)
    with pytest.raises(PeftkitError, match=told):
        merge(run.folder, tmp_path / "merged", **options)
    assert not (tmp_path / "merged").exists()


def test_a_run_on_original_weights_has_nothing_to_tell_of_another_storage(make_run: Any, tmp_path: Path) -> None:
    report = merge(make_run("llama", QUERIES).folder, tmp_path / "merged")
    assert not [key for key in report if "trained" in key or "requantized" in key]


STORED = {"peqa": ("peqa", "int4"), "qa-lora": ("qa-lora", "int3"), "alphatuning": ("alphatuning", "bcq2")}


@pytest.mark.parametrize("name", STORED)
def test_what_is_trained_of_stored_scales_is_written_packed_without_rounding(name: str, make_run: Any, tmp_path: Path):
    method, form = STORED[name]
    run = make_run("llama", method, torch.bfloat16, quantization={"format": form, "group_size": 16})
    with torch.no_grad():
        expected = run.logits()
    report = merge(run.folder, tmp_path / "packed", requantize=True)
    assert report["max_difference"] <= 1e-4 * report["scale"]
    assert report["adapter_effect"] > 100 * report["max_difference"]
    again = load(section(tmp_path / "packed"), dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(again.model(IDS).logits, expected, atol=1e-3, rtol=0)
    before = {path: layer.codes for path, layer in run.base.model.named_modules() if isinstance(layer, PackedLinear)}
    after = {path: layer.codes for path, layer in again.model.named_modules() if isinstance(layer, PackedLinear)}
    assert set(after) == set(before) != set()
    assert all(torch.equal(after[path], codes) for path, codes in before.items())


def test_a_run_on_another_librarys_checkpoint_merges_into_what_its_weights_stand_for(make_run: Any, tmp_path: Path):
    from quantized_checkpoints import write_bitsandbytes

    run = make_run("llama", LINEAR, base=write_bitsandbytes(tmp_path / "packed-base", "nf4"))
    with pytest.raises(PeftkitError, match=r"merge with --into dequantized"):
        merge(run.folder, tmp_path / "merged")
    with pytest.raises(PeftkitError, match="reads and does not write"):
        merge(run.folder, tmp_path / "merged", into="dequantized", requantize=True)
    assert not (tmp_path / "merged").exists()
    merge(run.folder, tmp_path / "merged", into="dequantized")
    torch.testing.assert_close(logits(tmp_path / "merged"), run.logits(), atol=1e-3, rtol=0)
