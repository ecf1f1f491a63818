"""Packed layers in a model: what runs, what is read from disk layer by layer, and what is kept for the next start."""

from __future__ import annotations

import logging

import pytest
import torch
from model_folders import write_model

from peftkit.adaptation import attach, load_adapter, save_adapter
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.models import layerwise, packed_cache, packed_folder
from peftkit.models.load import load
from peftkit.models.quantize import Quantization, forget_originals, quantize
from peftkit.models.sources import checkpoint
from peftkit.models.tiny import tiny
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.quantization.weight import dense, original, rounded, store
from peftkit.recipe import FormatChoice, ModelSection, QuantizationSection

NF4 = QuantizationSection(format="nf4", options={"block_size": 16})
IDS = torch.arange(3, 12)[None]


def test_a_packed_layer_trains_when_the_one_in_its_place_did():
    for training in (False, True):
        model = tiny("llama").train(training)
        quantize(model, Quantization(QUANTIZERS["nf4"]()))
        assert {module.training for module in model.modules()} == {training}


def packed(architecture="llama", quantizer=None, **modules):
    model = tiny(architecture)
    quantize(model, Quantization(quantizer or QUANTIZERS["nf4"](), modules))
    return model


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_linear_layers_of_the_blocks_are_packed_and_nothing_else(architecture):
    model, plain = packed(architecture), tiny(architecture)
    blocks = {site.path for site in Layout(plain).linears if site.role != "head"}
    assert set(layers(model)) == blocks
    assert set(Layout(model).packed) == blocks
    others = {name for name, _ in plain.named_parameters() if name.rpartition(".")[0] not in blocks}
    for name in others:
        assert torch.equal(model.get_parameter(name), plain.get_parameter(name))


def test_packed_weights_count_as_the_weights_that_they_are():
    method = METHODS["lora"].from_options({})
    assert attach(packed(), [method]).total == attach(tiny("llama"), [method]).total


def test_formats_are_chosen_by_module():
    int8 = QUANTIZERS["int8"]()
    model = packed(**{"layers.0.*": int8, "down": None})
    found = {name: layer.quantizer.name for name, layer in layers(model).items()}
    assert set(found.values()) == {"nf4", "int8"}
    assert all((name.split(".")[2] == "0") == (kind == "int8") for name, kind in found.items())
    assert not any("down" in name for name in found)


def test_a_pattern_without_a_match_and_a_tied_head_are_refused():
    with pytest.raises(PeftkitError, match=r"quantization: .*'q_porj'"):
        packed(q_porj=None)
    with pytest.raises(PeftkitError, match="shares its weight with another module"):
        quantize(tiny("gpt2"), Quantization(None, {"head": QUANTIZERS["nf4"]()}))


def test_a_layer_keeps_neither_its_input_nor_its_weight_for_the_backward_pass():
    layer = next(iter(layers(packed()).values()))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(torch.randn(5, layer.in_features, requires_grad=True))
    assert saved == []
    y.sum().backward()


def test_reading_storing_and_rounding_agree():
    layer = next(iter(layers(packed()).values()))
    wanted = torch.randn(layer.out_features, layer.in_features)
    kept = rounded(layer, wanted)
    assert not torch.equal(kept, wanted)
    buffers = {key: getattr(layer, key) for key in layer.parts}
    store(layer, wanted)
    assert torch.equal(dense(layer), kept)
    assert all(getattr(layer, key) is buffer for key, buffer in buffers.items())


def test_originals_are_there_until_they_are_let_go():
    model, plain = packed(), tiny("llama")
    name, layer = next(iter(layers(model).items()))
    assert torch.equal(original(layer), plain.get_submodule(name).weight)
    forget_originals(model)
    assert torch.equal(original(layer), dense(layer))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_reading_layer_by_layer_equals_packing_the_whole(architecture, dtype, tmp_path, monkeypatch):
    folder = write_model(tmp_path / "model", architecture, dtype, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    section = ModelSection(name=str(folder))
    plain = load(section)
    piecewise = load(section, quantization=NF4)
    monkeypatch.setattr(checkpoint, "_read_packed", lambda *_: None)
    whole = load(section, quantization=NF4)
    assert piecewise.fingerprint == whole.fingerprint == plain.fingerprint
    expected = whole.model.state_dict()
    assert set(piecewise.model.state_dict()) == set(expected)
    for name, tensor in piecewise.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.dtype == expected[name].dtype
    assert torch.equal(piecewise.model(input_ids=IDS).logits, whole.model(input_ids=IDS).logits)
    for name, layer in layers(piecewise.model).items():
        assert torch.equal(original(layer), dense(plain.model.get_submodule(name)))
    assert not any(parameter.is_meta for parameter in piecewise.model.parameters())


def test_nan_in_a_checkpoint_is_told_with_its_layer(tmp_path):
    folder = write_model(tmp_path / "model")
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if "up_proj" in key)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PeftkitError, match=f"{name.removesuffix('.weight')} holds NaN"):
        load(ModelSection(name=str(folder)), quantization=NF4)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Return (section, the folder of the only packed model that is kept)."""
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_cache, "SMALLEST", 0)
    section = ModelSection(name=str(write_model(tmp_path / "model")))
    first = load(section, quantization=NF4)
    (folder,) = (tmp_path / "cache" / "packed").iterdir()
    return section, folder, first


def test_a_second_start_reads_what_the_first_one_packed(kept, monkeypatch):
    section, _, first = kept
    monkeypatch.setattr(layerwise, "read", None)
    second = load(section, quantization=NF4)
    assert second.fingerprint == first.fingerprint
    assert torch.equal(second.model(input_ids=IDS).logits, first.model(input_ids=IDS).logits)
    for one, other in zip(layers(second.model).values(), layers(first.model).values(), strict=True):
        assert torch.equal(original(one), original(other))


def test_another_format_or_another_file_is_packed_anew(kept):
    section, folder, _ = kept
    load(section, quantization=QuantizationSection(format="nf4", options={"block_size": 32}))
    assert len(list(folder.parent.iterdir())) == 2
    load(section, quantization=QuantizationSection(modules={"up": FormatChoice(format="nf4")}))
    assert len(list(folder.parent.iterdir())) == 3


def test_a_disk_that_takes_nothing_is_told_and_stops_no_run(tmp_path, monkeypatch, caplog):
    from safetensors import SafetensorError

    def full(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_cache, "SMALLEST", 0)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    section = ModelSection(name=str(write_model(tmp_path / "model")))
    with caplog.at_level(logging.WARNING, "peftkit"):
        loaded = load(section, quantization=NF4)
    assert "not kept for the next start: cannot write" in caplog.text
    assert "No space left" in caplog.text
    assert layers(loaded.model)
    assert list((tmp_path / "cache" / "packed").iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "flip", "no facts"])
def test_a_damaged_packed_model_is_told_and_packed_again(kept, damage, caplog):
    section, folder, first = kept
    weights = folder / packed_folder.WEIGHTS
    content = bytearray(weights.read_bytes())
    if damage == "cut":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-5] ^= 255
        weights.write_bytes(content)
    else:
        (folder / packed_folder.FACTS).write_text("{")
    with caplog.at_level(logging.WARNING, "peftkit"):
        again = load(section, quantization=NF4)
    assert "packed again" in caplog.text
    assert torch.equal(again.model(input_ids=IDS).logits, first.model(input_ids=IDS).logits)
    caplog.clear()
    load(section, quantization=NF4)
    assert caplog.text == ""


def test_an_adapter_of_another_storage_is_refused(tmp_path):
    model = packed()
    adaptation = attach(model, [METHODS["lora"].from_options({})])
    save_adapter(adaptation, tmp_path / "adapter", {"name": "tiny", "quantization": NF4.model_dump()})
    other = QuantizationSection(format="nf4", options={"block_size": 64})
    with pytest.raises(
        PeftkitError, match=r"stored as nf4 \(block_size 16\), and the model is loaded as nf4 \(block_size 64"
    ):
        load_adapter(packed(), tmp_path / "adapter", None, quantization=other.model_dump())
    loaded = load_adapter(packed(), tmp_path / "adapter", None, quantization=NF4.model_dump())
    assert loaded.trainable == adaptation.trainable


def test_a_weight_that_was_asked_for_stays_while_layers_run_in_shared_memory():
    model = packed()
    first, second, *_ = layers(model).values()
    kept = dense(first)
    before = kept.clone()
    fleeting = first.unpacked(torch.float32, fleeting=True)
    assert torch.equal(fleeting, before)
    second(torch.randn(3, second.in_features))
    assert torch.equal(kept, before)
    assert torch.equal(first.unpacked(torch.float32, fleeting=True), before)


def test_threads_that_run_packed_layers_side_by_side_do_not_disturb_each_other():
    from concurrent.futures import ThreadPoolExecutor

    found = list(layers(packed()).values())[:2]
    xs = [torch.randn(64, layer.in_features) for layer in found]
    expected = [layer(x) for layer, x in zip(found, xs, strict=True)]

    def often(index):
        return all(torch.equal(found[index](xs[index]), expected[index]) for _ in range(200))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(often, [0, 1])) == [True, True]
