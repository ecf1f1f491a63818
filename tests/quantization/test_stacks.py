"""Packed stacks of experts: each weight packed as it is alone, read from disk one by one, and never kept dense."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from draw import marked, some
from storages import dequantized, small

import zoo
from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.export.packed import quantize as quantize_folder
from peftkit.layout import Layout
from peftkit.models import allocation, build, packed_cache, packed_folder
from peftkit.models.load import load
from peftkit.models.quantize import Quantization, quantize
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.quantization.stack import PackedStack
from peftkit.quantization.weight import dense
from peftkit.recipe import FormatChoice, ModelSection, QuantizationSection
from peftkit.tensor_file import read_tensors, write_tensors

IDS = torch.arange(3, 15)[None]
FAMILIES = ["aria_text", "deepseek_v3", "ernie4_5_moe", "gpt_oss", "granitemoehybrid", "jamba", "jetmoe", "lfm2_moe"]
FAMILIES += ["llama4_text", "minimax_m2", "mixtral", "nemotron_h", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "zaya"]
HELD = ("mixtral", "gpt_oss", "deepseek_v3")
"""Experts that a checkpoint holds one by one, a stack with inputs in front and biases, and shared experts beside."""
CROSS = [(family, name) for family in FAMILIES for name in QUANTIZERS.names()]
DRAWN = [("mixtral", name) for name in QUANTIZERS.names()]
DRAWN += [(family, name) for family in HELD[1:] for name in some(family, QUANTIZERS.names(), 2)]
NF4 = QuantizationSection(format="nf4", options={"block_size": 16})


def packed(family: str, format_name: str = "nf4") -> Any:
    """Build a model whose stacks are packed; its linear layers may be too small for a format's groups."""
    model = zoo.build(family)
    quantize(model, Quantization(None, {"experts": small(format_name)}))
    return model


def stacks(model: Any) -> dict[str, PackedStack]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedStack)}


def run(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and the gradient of their mean square with respect to the embedded tokens."""
    given = model.get_input_embeddings()(IDS).detach().requires_grad_()
    logits = model(inputs_embeds=given, use_cache=False).logits
    logits.square().mean().backward()
    assert given.grad is not None
    return logits.detach(), given.grad


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("format_name", QUANTIZERS.names())
def test_each_weight_of_a_stack_is_packed_as_it_is_alone(family, format_name):
    plain, quantizer = zoo.build(family), small(format_name)
    model = packed(family, format_name)
    sites = {site.id: site for site in Layout(plain).stacks}
    assert sites
    assert set(stacks(model)) == set(sites)
    for name, stack in stacks(model).items():
        site = sites[name]
        whole = site.module.get_parameter(str(site.stack))
        assert stack.shape == whole.shape
        for index, layer in enumerate(stack.layers):
            weight = whole[index].T if site.transposed else whole[index]
            parts = quantizer.quantize(weight)
            assert layer.packed().keys() == parts.keys()
            assert all(torch.equal(layer.packed()[key], parts[key]) for key in parts)
            alone = quantizer.decode(parts, (site.outputs, site.inputs))
            assert torch.equal(dense(layer), alone)
            assert torch.equal(stack.read()[index], alone.T if site.transposed else alone)


@pytest.mark.parametrize(("family", "format_name"), marked(CROSS, DRAWN))
def test_logits_and_gradients_are_those_of_the_dequantized_stacks(family, format_name):
    model = packed(family, format_name)
    twin = dequantized(model)
    assert stacks(model)
    assert not stacks(twin)
    for one, other in zip(run(model), run(twin), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("way", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_however_the_experts_are_computed(family, way):
    model = packed(family)
    model.config._experts_implementation = way
    twin = dequantized(model)
    for one, other in zip(run(model), run(twin), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def alive(monkeypatch) -> Any:
    """Count the bytes of dense weights of stacks that are alive, and the most that were at once."""
    living: dict[int, int] = {}
    counts = {"now": 0, "most": 0, "largest": 0}
    own = PackedStack.read

    def read(self, dtype=None, index=None):
        made = own(self, dtype, index)
        storage = made.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        living[key] = size
        weakref.finalize(storage, gone, key)
        counts["now"] = sum(living.values())
        counts["most"] = max(counts["most"], counts["now"])
        counts["largest"] = max(counts["largest"], size)
        return made

    def gone(key: int) -> None:
        living.pop(key, None)
        counts["now"] = sum(living.values())

    monkeypatch.setattr(PackedStack, "read", read)
    return counts


@pytest.mark.parametrize(("way", "at_once"), [("eager", 2), ("grouped_mm", 2)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_dense_stack_is_kept_for_the_backward_pass(alive, way, at_once, checkpointing):
    model = packed("mixtral").train()
    model.config._experts_implementation = way
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    given = model.get_input_embeddings()(IDS).detach().requires_grad_()
    loss = model(inputs_embeds=given, use_cache=False).logits.square().mean()
    assert alive["now"] == 0
    assert 0 < alive["most"] <= at_once * alive["largest"]
    loss.backward()
    assert alive["now"] == 0
    assert alive["most"] <= at_once * alive["largest"]
    whole = stacks(model)["model.layers.0.mlp.experts.gate_up_proj"].shape.numel() * 4
    assert alive["largest"] == (whole if way == "grouped_mm" else whole // 4)


def test_a_pass_that_fails_leaves_the_module_as_it_was():
    model = packed("mixtral")
    experts = model.get_submodule("model.layers.0.mlp.experts")
    with pytest.raises(RuntimeError):
        experts(torch.ones(3, 7), torch.zeros(3, 2, dtype=torch.long), torch.ones(3, 2))
    assert isinstance(experts.gate_up_proj, PackedStack)
    assert torch.equal(run(model)[0], run(model)[0])


# Loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", marked(FAMILIES, HELD))
def test_a_checkpoint_is_read_and_packed_weight_by_weight(family, tmp_path, monkeypatch):
    zoo.write(tmp_path, family)
    dense_model = load(ModelSection(name=str(tmp_path)))
    mark = dense_model.fingerprint
    monkeypatch.setattr(build, "read_whole", lambda *args, **named: pytest.fail("the checkpoint was read whole"))
    loaded = load(ModelSection(name=str(tmp_path)), quantization=NF4)
    assert loaded.fingerprint == mark
    assert stacks(loaded.module)
    quantize(dense_model.module, Quantization.of(NF4))
    expected = dense_model.model.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    for name, stack in stacks(loaded.module).items():
        other = stacks(dense_model.module)[name]
        for layer, twin in zip(stack.layers, other.layers, strict=True):
            assert layer.source is not None
            assert twin.source is not None
            assert torch.equal(layer.source(), twin.source())


def test_stacks_may_have_a_format_of_their_own_or_none(tmp_path):
    zoo.write(tmp_path, "mixtral")
    choice = {"experts": FormatChoice(format="none", options={})}
    section = QuantizationSection(format="nf4", options={"block_size": 16}, modules=choice)
    loaded = load(ModelSection(name=str(tmp_path)), quantization=section)
    assert not stacks(loaded.module)
    assert loaded.fingerprint == load(ModelSection(name=str(tmp_path))).fingerprint
    layers = Quantization(small("nf4"), {"layers.1.*": small("int8"), "*.down_proj": None}).choose(
        Layout(zoo.build("mixtral"))
    )
    formats = {path.partition("layers.")[2]: quantizer.name for path, quantizer in layers.items()}
    assert formats["1.mlp.experts.gate_up_proj"] == formats["1.self_attn.q_proj"] == "int8"
    assert formats["0.mlp.experts.gate_up_proj"] == "nf4"
    assert not any("down_proj" in path for path in formats)


def test_a_weight_that_cannot_be_packed_is_named():
    with pytest.raises(PeftkitError, match=r"experts.gate_up_proj\[0\] cannot be stored as int4: its 32 inputs"):
        quantize(zoo.build("mixtral"), Quantization(None, {"experts": QUANTIZERS["int4"]()}))


def test_a_packed_folder_and_the_cache_are_the_model_packed_at_loading(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_cache, "SMALLEST", 1)
    zoo.write(tmp_path / "base", "mixtral")
    section = ModelSection(name=str(tmp_path / "base"))
    first = load(section, quantization=NF4)
    again = load(section, quantization=NF4)
    report = quantize_folder(str(tmp_path / "base"), "nf4", tmp_path / "packed", ["block_size=16"])
    folder = load(ModelSection(name=str(tmp_path / "packed")))
    expected = first.model(input_ids=IDS).logits
    for other in (again, folder):
        assert other.fingerprint == first.fingerprint
        assert torch.equal(other.model(input_ids=IDS).logits, expected)
    assert all(layer.source is not None for stack in stacks(again.module).values() for layer in stack.layers)
    held = read_tensors(tmp_path / "packed" / packed_folder.WEIGHTS)
    experts = {name for name in held if ".experts." in name}
    assert len(experts) == 4 * 2 * 4 * 4
    assert report["packed_layers"] == 4 * 4 + 4 * 2 * 4
    packed_bytes = sum(tensor.nbytes for name, tensor in held.items() if "codes" in name or "scale" in name)
    assert report["bits_per_weight"] < 5.5
    assert packed_bytes < 0.2 * sum(4 * p.numel() for name, p in zoo.build("mixtral").named_parameters())


def test_a_folder_whose_stacks_were_left_dense_opens_as_it_is(tmp_path):
    zoo.write(tmp_path / "base", "mixtral")
    quantize_folder(str(tmp_path / "base"), "nf4", tmp_path / "packed", ["block_size=16", "experts=none"])
    facts = json.loads((tmp_path / "packed" / packed_folder.FACTS).read_text())
    facts["storage"]["modules"] = {}
    (tmp_path / "packed" / packed_folder.FACTS).write_text(json.dumps(facts))
    assert not stacks(load(ModelSection(name=str(tmp_path / "packed"))).module)


def test_a_folder_that_lacks_a_weight_of_a_stack_is_refused(tmp_path):
    zoo.write(tmp_path / "base", "mixtral")
    quantize_folder(str(tmp_path / "base"), "nf4", tmp_path / "packed", ["block_size=16"])
    path: Path = tmp_path / "packed" / packed_folder.WEIGHTS
    lacking = "model.layers.1.mlp.experts.down_proj.2."
    write_tensors(path, {key: value for key, value in read_tensors(path).items() if not key.startswith(lacking)})
    facts = json.loads((path.parent / packed_folder.FACTS).read_text())
    facts["sha256"] = files.checksum(path)
    (path.parent / packed_folder.FACTS).write_text(json.dumps(facts))
    with pytest.raises(PeftkitError, match=r"lacks model.layers.1.mlp.experts.down_proj"):
        load(ModelSection(name=str(path.parent)))


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_a_budget_of_bits_is_spent_on_stacks_too(family, tmp_path):
    pytest.importorskip("scipy")
    zoo.write(tmp_path, family)
    section = QuantizationSection(format="none", budget=3.5)
    loaded = load(ModelSection(name=str(tmp_path)), quantization=section)
    layers = [module for module in loaded.module.modules() if isinstance(module, PackedLinear)]
    bits = 8 * sum(part.nbytes for layer in layers for part in layer.packed().values())
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    assert 3 < bits / weights <= 3.5
    assert {site.id for site in Layout(zoo.build(family)).stacks} == set(stacks(loaded.module))
    # Of weights that are there the choice is the same as of those in files.
    model = zoo.build(family)
    layout = Layout(model)
    sites = {site.id: site for site in layout.stacks}

    def read(path: str) -> torch.Tensor:
        stack, _, index = path.rpartition(".")
        return dense(sites[stack].each()[int(index)].module if stack in sites else model.get_submodule(path))

    assert allocation.allocate(3.5, layout, read).description() == loaded.storage
