"""Checkpoints that other libraries have quantized, loaded by transformers.

Those of bitsandbytes always run. Those of torchao, GPTQ and AWQ (both by gptqmodel) and layers of HQQ run where their
libraries are installed: they have with torchao 0.18 (int8), gptqmodel 7.7, optimum 2.3 and hqq 0.2.8 on a CPU. The
layout of AWQ is checked without its library too. Whole checkpoints of HQQ are not: transformers 5.23 cannot load them.
"""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import packed_layouts
import pytest
import torch
from model_folders import byte_tokenizer, section, write_model
from quantized_checkpoints import BITSANDBYTES, write_bitsandbytes, write_quantized
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.methods.full import Full
from peftkit.methods.lora import LoRA
from peftkit.models.load import load
from peftkit.models.quantize import unpack
from peftkit.models.quiet import quiet
from peftkit.models.sources import foreign
from peftkit.models.tiny import tiny
from peftkit.quantization import foreign as layers
from peftkit.quantization.foreign import READERS, ForeignLinear, Reader
from peftkit.quantization.weight import dense, packed_shape
from peftkit.recipe import QuantizationSection

IDS = torch.arange(3, 27).view(2, 12)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    kinds = {(kind, "llama"): kind for kind in BITSANDBYTES} | {("nf4", "gpt2"): "nf4"}
    return {key: write_bitsandbytes(folder / "-".join(key), kind, key[1]) for key, kind in kinds.items()}


def unfilled(model):
    with torch.device("meta"):
        return type(model)(model.config)


def packed(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, ForeignLinear)}


@pytest.mark.parametrize("key", [(kind, "llama") for kind in BITSANDBYTES] + [("nf4", "gpt2")], ids="-".join)
def test_the_layers_of_bitsandbytes_are_read_as_the_library_reads_them(checkpoints, key):
    loaded = load(section(checkpoints[key]))
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(checkpoints[key], dtype=torch.float32, device_map={"": "cpu"})
    mine = packed(loaded.model)
    assert len(mine) == (14 if key[1] == "llama" else 8)
    for path, layer in mine.items():
        other = theirs.get_submodule(path)
        assert torch.allclose(dense(layer), dequantize_bnb_weight(other.weight, getattr(other, "state", None)))
        assert packed_shape(layer) == (other.out_features, other.in_features)
        assert dense(layer).dtype == torch.float32
    assert not loaded.model.training
    assert loaded.storage == {"format": "bitsandbytes", "options": {}, "modules": {}}
    assert not loaded.has_originals
    assert not any(parameter.dtype == torch.uint8 for parameter in loaded.model.parameters())


@pytest.mark.parametrize("kind", BITSANDBYTES)
def test_the_outline_has_the_same_layers_and_counts_and_the_packed_size(checkpoints, kind):
    folder = checkpoints[kind, "llama"]
    outline = load(section(folder), device="meta", weights=False)
    assert outline.fingerprint is None
    adaptations = [attach(model, [LoRA()]) for model in (outline.model, load(section(folder)).model, tiny("llama"))]
    assert len({adaptation.total for adaptation in adaptations}) == 1
    assert len({adaptation.trainable for adaptation in adaptations}) == 1
    assert set(packed(outline.model)) == set(packed(adaptations[1].model))
    for layer in packed(outline.model).values():
        assert layer.packed.numel() == layer.in_features * layer.out_features * (1 if kind == "int8" else 0.5)


def test_a_recipe_that_quantizes_it_again_is_refused(checkpoints):
    folder = checkpoints["nf4", "llama"]
    for where in ({}, {"device": "meta", "weights": False}):
        with pytest.raises(PeftkitError, match=r"quantized already \(bitsandbytes\).*Leave `quantization` out"):
            load(section(folder), quantization=QuantizationSection(format="nf4"), **where)
        with pytest.raises(PeftkitError, match="Leave `quantization` out"):
            load(section(folder), quantization=QuantizationSection(budget=3.0), **where)
    assert packed(load(section(folder), quantization=QuantizationSection()).model)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (Full(), "without quantization"),
        (LoRA(init="pissa"), "can be read, and cannot be changed: choose another init"),
        (
            LoRA(init="loftq"),
            "cannot take in another weight: choose another init|is not there: name the original model",
        ),
    ],
    ids=["full", "pissa", "loftq"],
)
def test_what_would_write_the_packed_weight_is_refused(checkpoints, method, told):
    for where in ({"device": "meta", "weights": False}, {}):
        with pytest.raises(PeftkitError, match=told):
            attach(load(section(checkpoints["nf4", "llama"]), **where).model, [method])


def test_the_fingerprint_tells_how_the_base_is_stored(checkpoints, tmp_path):
    marks = {key: load(section(folder)).fingerprint for key, folder in checkpoints.items()}
    marks["dense"] = load(section(write_model(tmp_path / "dense"))).fingerprint
    assert len(set(marks.values())) == len(marks)
    shards = write_bitsandbytes(tmp_path / "shards", "nf4", max_shard_size="10KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    mark = marks["nf4", "llama"]
    assert load(section(shards)).fingerprint == mark
    assert load(section(shards), dtype=torch.bfloat16).fingerprint == mark


@pytest.mark.parametrize("key", [("nf4", "llama"), ("int8", "llama"), ("nf4", "gpt2")], ids="-".join)
def test_an_unpacked_model_is_an_ordinary_one_and_keeps_a_merge(checkpoints, key, tmp_path):
    loaded = load(section(checkpoints[key]))
    model = loaded.model
    adaptation = attach(model, [LoRA()], keep_base=False)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.normal_(std=0.1)
        adapted = model(input_ids=IDS).logits
        adaptation.merge_()
        paths = unpack(model, unfilled(model))
        assert len(paths) == (14 if key[1] == "llama" else 8)
        assert not packed(model)
        assert (model(input_ids=IDS).logits - adapted).abs().max() <= 1e-5
        with quiet():
            model.save_pretrained(tmp_path / "plain")
            byte_tokenizer().save_pretrained(tmp_path / "plain")
        assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
        again = load(section(tmp_path / "plain"))
        assert (again.model(input_ids=IDS).logits - adapted).abs().max() <= 1e-5


def test_unpacking_a_dense_model_changes_nothing():
    model = tiny("llama")
    before = dict(model.named_parameters())
    assert unpack(model, unfilled(model)) == []
    assert all(before[name] is parameter for name, parameter in model.named_parameters())


def test_a_gpu_that_decodes_uses_the_librarys_own_kernel(monkeypatch):
    layer = nn.Linear(8, 4)
    own = ForeignLinear.of(
        layer, Reader("none", (), lambda _: True, lambda it: 2 * it.weight, kernel=True), torch.float32
    )
    x = torch.randn(3, 8)
    assert torch.allclose(own(x), x @ (2 * layer.weight).T + own.bias)
    monkeypatch.setattr(layers, "_decodes_on_gpu", lambda _: True)
    assert torch.allclose(own(x), x @ layer.weight.T + own.bias)
    own.held = torch.zeros(4, 8)
    assert torch.equal(own(x), own.bias.expand(3, 4))


def rewritten(folder, config):
    value = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(value | {"quantization_config": config}))
    return folder


def test_an_unknown_way_of_packing_is_refused_with_those_that_are_read(tmp_path):
    folder = rewritten(write_model(tmp_path / "model"), {"quant_method": "fp8"})
    with pytest.raises(
        PeftkitError, match=r"config\.json: the weights are quantized by 'fp8'; read are awq, bitsandbytes"
    ):
        load(section(folder))


@pytest.mark.parametrize("name", READERS.names())
def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, name):
    reader = READERS[name]
    folder = rewritten(write_model(tmp_path / "model"), {"quant_method": reader.method, "bits": 4})
    known = importlib.util.find_spec
    monkeypatch.setattr(foreign.importlib.util, "find_spec", lambda it: None if it in reader.packages else known(it))
    with pytest.raises(PeftkitError, match=f"quantized by {reader.method}.*pip install {' '.join(reader.packages)}"):
        load(section(folder), device="meta", weights=False)


def test_a_damaged_checkpoint_is_refused(checkpoints, tmp_path):
    folder = write_bitsandbytes(tmp_path / "broken", "nf4")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(PeftkitError, match=r"truncated or damaged|cannot be loaded"):
        load(section(folder))


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_checkpoints_of_gptqmodel(tmp_path, layout):
    pytest.importorskip("gptqmodel", reason="gptqmodel loads GPTQ and AWQ for transformers; it is not installed")
    pytest.importorskip("optimum", reason="optimum loads GPTQ for transformers; it is not installed")
    meant = packed_layouts.write(tiny("llama", num_key_value_heads=4), tmp_path / layout, layout)
    with quiet():
        byte_tokenizer().save_pretrained(tmp_path / layout)
    learns(load(section(tmp_path / layout)), meant, 1e-3)
    outline = load(section(tmp_path / layout), device="meta", weights=False)
    assert set(packed(outline.model)) == set(meant)


def test_checkpoints_of_torchao(tmp_path):
    pytest.importorskip("torchao", reason="torchao loads such checkpoints for transformers; it is not installed")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    folder = write_quantized(tmp_path / "int8", TorchAoConfig(Int8WeightOnlyConfig()))
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"})
    meant = {
        path: module.weight.dequantize()
        for path, module in theirs.named_modules()
        if ".layers." in path and isinstance(module, nn.Linear)
    }
    learns(load(section(folder)), meant, 0.0)
    outline = load(section(folder), device="meta", weights=False)
    assert set(packed(outline.model)) == set(meant)


def learns(loaded, meant, close):
    """Check the layers' weights, and that adapters get gradients as on a dense model of these weights."""
    mine = packed(loaded.model)
    assert set(meant) <= set(mine)
    for path, weight in meant.items():
        assert torch.allclose(dense(mine[path]), weight, atol=close)
    twin = load_twin(loaded.model)
    results = []
    for model in (loaded.model, twin):
        adaptation = attach(model, [LoRA()])
        model(input_ids=IDS, labels=IDS).loss.backward()
        results.append([parameter.grad for _, parameter in adaptation.parameters()])
    assert any(gradient.abs().max() > 0 for gradient in results[0])
    assert all(torch.allclose(one, other, atol=1e-5, rtol=1e-3) for one, other in zip(*results, strict=True))


def load_twin(model):
    import copy

    twin = copy.deepcopy(model)
    assert unpack(twin, unfilled(twin))
    return twin


def test_what_transformers_cannot_load_is_told_before_anything_is_loaded(checkpoints, monkeypatch):
    def no(self):
        raise NotImplementedError("will be supported\nsoon")

    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.Bnb4BitHfQuantizer.get_quantize_ops", no)
    with pytest.raises(PeftkitError, match="nf4-llama cannot be loaded: will be supported soon"):
        load(section(checkpoints["nf4", "llama"]), device="meta", weights=False)


@pytest.mark.parametrize("axis", [0, 1])
def test_layers_of_hqq(axis):
    pytest.importorskip("hqq", reason="hqq makes such layers; it is not installed")
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=4, group_size=32, axis=axis)
    layer = HQQLinear(nn.Linear(64, 32), config, compute_dtype=torch.float32, device="cpu")
    x = torch.randn(3, 64)
    expected = layer(x).detach()
    reader = layers.reader_of(layer)
    assert reader is READERS["hqq"]
    assert torch.allclose(ForeignLinear.of(layer, reader, torch.float32)(x), expected, atol=1e-6)


def test_the_layout_of_awq_is_read():
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    tensors, meant = packed_layouts.awq(weight)
    layer: nn.Module = nn.Module()
    layer.in_features, layer.out_features, layer.bias = 32, 24, None
    for key, tensor in tensors.items():
        layer.register_buffer(key, tensor)
    reader = layers.reader_of(layer)
    assert reader is READERS["awq"]
    own = ForeignLinear.of(layer, reader, torch.float32)
    assert torch.allclose(dense(own), meant, atol=2e-3)
    assert (meant - weight).abs().max() < 0.3
    for key, tensor in packed_layouts.gptq(weight)[0].items():
        layer.register_buffer(key, tensor)
    assert layers.reader_of(layer) is None


@pytest.mark.parametrize(
    ("told", "settings", "expected"),
    [
        ({"quantized_element_size": 0.25}, {"load_in_4bit": True}, 0.25),
        ({"quantized_element_size": None}, {"bits": 4}, 0.5),
        ({}, {"load_in_4bit": True}, 0.5),
        ({}, {"load_in_4bit": False}, 1.0),
        ({}, {"bits": 3}, 0.375),
    ],
)
def test_the_size_of_a_packed_weight_is_known_without_being_told(told, settings, expected):
    quantizer = SimpleNamespace(quantization_config=SimpleNamespace(**settings), **told)
    assert foreign._element_size(quantizer) == expected
