"""`peft quantize`: a folder of packed weights is the model that packing at loading gives."""

from __future__ import annotations

import json

import pytest
import torch
from model_folders import write_model

from peftkit import recipe as recipes
from peftkit.adaptation import attach, load_adapter, save_adapter
from peftkit.assembly import assemble
from peftkit.errors import PeftkitError
from peftkit.export.packed import quantize
from peftkit.method import METHODS
from peftkit.models import packed_folder
from peftkit.models.load import load
from peftkit.quantization.packed import PackedLinear
from peftkit.recipe import ModelSection, QuantizationSection
from peftkit.tensor_file import read_tensors

IDS = torch.arange(3, 12)[None]
NF4 = QuantizationSection(format="nf4", options={"block_size": 16, "double_quant": True})


@pytest.fixture(params=["llama", "gpt2"])
def original(request, tmp_path):
    return write_model(tmp_path / "original", request.param, torch.bfloat16, max_shard_size="20KB")


@pytest.fixture
def packed(original, tmp_path):
    quantize(str(original), "nf4", tmp_path / "packed", ["block_size=16"])
    return tmp_path / "packed"


def test_a_packed_folder_is_the_model_packed_at_loading(original, packed):
    one = load(ModelSection(name=str(packed)))
    other = load(ModelSection(name=str(original)), quantization=NF4)
    assert one.fingerprint == other.fingerprint == load(ModelSection(name=str(original))).fingerprint
    assert one.storage == other.storage
    expected = other.model.state_dict()
    assert set(one.model.state_dict()) == set(expected)
    for name, tensor in one.model.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
    assert torch.equal(one.model(input_ids=IDS).logits, other.model(input_ids=IDS).logits)
    assert not one.has_originals
    assert other.has_originals


def test_an_adapter_of_one_is_an_adapter_of_the_other(original, packed, tmp_path):
    one, other = load(ModelSection(name=str(packed))), load(ModelSection(name=str(original)), quantization=NF4)
    adaptation = attach(one.model, [METHODS["lora"].from_options({})])
    base = {"name": one.name, "fingerprint": one.fingerprint, "quantization": one.storage}
    save_adapter(adaptation, tmp_path / "adapter", base)
    load_adapter(other.model, tmp_path / "adapter", other.fingerprint, quantization=other.storage)


def test_what_is_told_is_what_lies_there(original, tmp_path):
    report = quantize(str(original), "int4", tmp_path / "packed", ["group_size=16", "head=none"])
    held = read_tensors(tmp_path / "packed" / packed_folder.WEIGHTS)
    model = load(ModelSection(name=str(tmp_path / "packed"))).model
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    size = sum(
        tensor.nbytes for name, tensor in held.items() if name.rpartition(".")[0] in layers and "bias" not in name
    )
    weights = sum(layer.in_features * layer.out_features for layer in layers.values())
    assert report["packed_layers"] == len(layers) > 0
    assert report["bits_per_weight"] == pytest.approx(8 * size / weights)
    assert report["bytes_after"] == (tmp_path / "packed" / packed_folder.WEIGHTS).stat().st_size
    assert 0.02 < report["weight_error"] < 0.2
    assert {held[name].dtype for name in held if "norm" in name or "ln_" in name} == {torch.bfloat16}


def test_a_recipe_that_asks_for_another_storage_is_refused(packed):
    load(ModelSection(name=str(packed)), quantization=NF4)
    other = QuantizationSection(format="int8", options={})
    with pytest.raises(PeftkitError, match=r"packed already, as nf4 .*leave quantization out, or name the original"):
        load(ModelSection(name=str(packed)), quantization=other)
    with pytest.raises(PeftkitError, match=r"cannot be packed as a budget of 2\.5 bits a weight asks"):
        load(ModelSection(name=str(packed)), quantization=QuantizationSection(budget=2.5))
    with pytest.raises(PeftkitError, match="is packed already: name the original model"):
        quantize(str(packed), "nf4", packed.parent / "again")


def test_loftq_needs_the_original(packed):
    model = load(ModelSection(name=str(packed))).model
    with pytest.raises(PeftkitError, match=r"the original weight of .* is not there"):
        attach(model, [METHODS["lora"].from_options({"init": "loftq"})])


@pytest.mark.parametrize(
    ("format_name", "options", "told"),
    [
        ("nf5", [], "did you mean 'nf4'"),
        ("nf4", ["block_size=7"], "block_size"),
        ("int4", ["group_size=24"], "group_size"),
    ],
)
def test_what_cannot_be_packed_leaves_nothing(original, tmp_path, format_name, options, told):
    with pytest.raises(PeftkitError, match=told):
        quantize(str(original), format_name, tmp_path / "out", options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]


def test_damaged_packed_weights_are_told(packed):
    weights = packed / packed_folder.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(PeftkitError, match="is damaged: its checksum differs"):
        load(ModelSection(name=str(packed)))


def test_packed_weights_of_another_model_are_told(packed, tmp_path):
    config = packed / "config.json"
    described = json.loads(config.read_text())
    key = "num_hidden_layers" if "num_hidden_layers" in described else "n_layer"
    config.write_text(json.dumps({**described, key: 3}))
    with pytest.raises(PeftkitError, match="another"):
        load(ModelSection(name=str(packed)))


def test_a_calibrated_format_is_packed_on_named_data_alone(original, tmp_path):
    with pytest.raises(PeftkitError, match=r"gptq .*is calibrated on examples, and none are named.*--data"):
        quantize(str(original), "gptq", tmp_path / "none", ["group_size=16"])
    with pytest.raises(PeftkitError, match=r"--data: int4 .*looks at no examples"):
        quantize(str(original), "int4", tmp_path / "none", ["group_size=16"], data="bundled/e2e")
    assert not (tmp_path / "none").exists()
    one = quantize(str(original), "gptq", tmp_path / "one", ["group_size=16", "bits=3"], data="bundled/e2e")
    two = quantize(str(original), "gptq", tmp_path / "two", ["group_size=16", "bits=3"], data="bundled/e2e")
    plain = quantize(str(original), "int3", tmp_path / "plain", ["group_size=16"])
    assert one["bits_per_weight"] == two["bits_per_weight"] == plain["bits_per_weight"]
    assert one["weight_error"] > plain["weight_error"]
    held = [read_tensors(tmp_path / name / packed_folder.WEIGHTS) for name in ("one", "two")]
    assert all(torch.equal(held[0][key], held[1][key]) for key in held[0])
    storage = load(ModelSection(name=str(tmp_path / "one"))).storage
    assert storage == packed_folder.facts(tmp_path / "one")["storage"]
    chosen = {"model": str(tmp_path / "one"), "method": "lora", "dataset": "bundled/e2e"}
    again = {"format": "gptq", "group_size": 16, "bits": 3}
    assert assemble(recipes.load({**chosen, "quantization": again}), bare=True).storage == storage
