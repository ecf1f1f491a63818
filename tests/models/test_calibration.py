"""Going over a model with examples: what layers are shown, and that packing for it keeps the model's outputs."""

from __future__ import annotations

import logging

import pytest
import torch
from draw import marked, some

import zoo
from peftkit.layout import Layout
from peftkit.models import walk
from peftkit.models.calibrate import calibrate
from peftkit.models.quantize import Quantization, forget_originals, quantize
from peftkit.models.tiny import tiny
from peftkit.models.walk import Walk, observe
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.quantization.weight import dense, original

CALIBRATED = [name for name, cls in QUANTIZERS.items() if cls.calibrated]

FAMILIES = zoo.made()
HELD = ["mllama", "hrm_text", *some("walk", FAMILIES, 8)]
"""Two that are run whole, as their layers are not given what the last returned, and some that a name draws."""


def rows(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 60, (1, 6 + 5 * (number % 3)), generator=generator) for number in range(count)]


def small(name, bits=3):
    return QUANTIZERS[name].from_options({"bits": bits, "group_size": 16})


def logits(model, examples):
    with torch.no_grad():
        return torch.cat([model(input_ids=ids, use_cache=False).logits.flatten(0, 1) for ids in examples])


def outlying():
    """Build a model whose linear maps read a few channels that are much larger than the others."""
    model = tiny("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[[3, 17]] *= 20
            layer.post_attention_layernorm.weight[[5, 11]] *= 20
    return model


def maps(model):
    return [site.path for site in Layout(model).linears if site.layer is not None]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi", "gemma2", "gemma3n_text", "mamba", "jamba"])
@pytest.mark.parametrize("kept", [True, False])
def test_each_layer_reads_what_it_reads_in_the_whole_model(architecture, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(Walk, "_look", lambda self: False)
    model, examples = zoo.build(architecture), rows()
    paths = maps(model)
    with torch.no_grad():
        everything = observe(model, paths, lambda: [model(input_ids=ids, use_cache=False) for ids in examples])
    layout, seen = Layout(model), {}
    for layer, run in Walk(model, examples).layers():
        own = [path for path in paths if layout.layer_of(path) == layer]
        seen |= observe(model, own, run) if own else {}
    assert seen.keys() == everything.keys()
    for path, inputs in seen.items():
        assert inputs.count == everything[path].count
        assert torch.equal(inputs.squares, everything[path].squares), path


@pytest.mark.parametrize("family", marked(FAMILIES, HELD))
def test_layers_of_every_family_read_what_they_read_in_the_whole_model(family):
    model, examples = zoo.build(family), rows(2)
    paths, layout = list(dict.fromkeys(maps(model))), Layout(model)
    with torch.no_grad():
        everything = observe(model, paths, lambda: [model(input_ids=ids, use_cache=False) for ids in examples])
    for layer, run in Walk(model, examples).layers():
        own = [path for path in paths if layout.layer_of(path) == layer]
        for path, inputs in observe(model, own, run).items() if own else ():
            assert inputs.count == everything[path].count, path
            assert torch.allclose(inputs.squares, everything[path].squares, rtol=1e-4, atol=1e-5), path


def test_layers_are_run_by_themselves_where_each_is_given_what_the_last_returned():
    model, calls = tiny("llama"), []
    model.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    for _, run in Walk(model, rows(4)).layers():
        run()
    # Once to look, and once for what lies outside of the layers.
    assert len(calls) == 8


def test_a_model_that_changes_what_a_layer_returned_is_run_whole():
    model, calls = tiny("llama"), []

    model.model.layers[1].register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0] * 2, *args[1:]), kwargs), with_kwargs=True, prepend=True
    )
    model.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    layers = [layer for layer, run in Walk(model, rows(3)).layers() if run() is None]
    assert layers == [0, 1, None]
    assert len(calls) == 1 + 3 * 3


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("name", CALIBRATED)
def test_every_map_is_packed_for_what_it_reads_behind_packed_layers(architecture, name):
    model, examples = tiny(architecture), rows()
    calibrate(model, Quantization(small(name)), examples)
    plain = tiny(architecture)
    quantize(plain, Quantization(small(name)))
    layers = {path: one for path, one in model.named_modules() if isinstance(one, PackedLinear)}
    assert set(layers) == set(maps(tiny(architecture)))
    layout = Layout(model)
    twin = tiny(architecture)
    for path, layer in layers.items():
        assert torch.equal(original(layer), dense(twin.get_submodule(path)))
    # The first layer by hand: it reads what it reads in the dense model.
    first = [path for path in layers if layout.layer_of(path) == 0]
    with torch.no_grad():
        seen = observe(twin, first, lambda: [twin(input_ids=ids, use_cache=False) for ids in examples])
    for path in first:
        parts = small(name).quantize(dense(twin.get_submodule(path)).detach(), inputs=seen[path])
        assert all(torch.equal(part, layers[path].packed()[key]) for key, part in parts.items()), path
    assert any(not torch.equal(dense(layers[path]), dense(plain.get_submodule(path))) for path in layers)
    forget_originals(model)


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_calibrated_models_outputs_are_nearer_to_the_dense_ones(name):
    examples, other = rows(48), rows(12, seed=1)
    model, plain, whole = outlying(), outlying(), outlying()
    calibrate(model, Quantization(small(name, 3)), examples)
    quantize(plain, Quantization(small(name, 3)))
    expected = logits(whole, other)
    errors = [float((logits(one, other) - expected).square().mean()) for one in (model, plain)]
    assert errors[0] < 0.9 * errors[1]


def test_other_formats_stay_with_what_they_are_and_the_mode_comes_back():
    model = tiny("llama").train()
    chosen = Quantization(small("gptq"), {"down": QUANTIZERS["int8"](), "q": None, "head": small("awq")})
    assert chosen.calibrated
    assert chosen.uncalibrated == Quantization(None, {"down": QUANTIZERS["int8"](), "q": None, "head": None})
    quantize(model, chosen.uncalibrated)
    calibrate(model, chosen, rows())
    found = {path: one.quantizer.name for path, one in model.named_modules() if isinstance(one, PackedLinear)}
    assert set(found.values()) == {"gptq", "int8", "awq"}
    assert found["lm_head"] == "awq"
    assert not any("q_proj" in path for path in found)
    assert model.training


def test_stacks_of_experts_are_rounded_to_nearest_and_that_is_told(caplog):
    model, plain = zoo.build("mixtral"), zoo.build("mixtral")
    with caplog.at_level(logging.WARNING, "peftkit"):
        calibrate(model, Quantization(small("gptq")), rows())
    assert "rounded to nearest, as no input was seen: model.layers.0.mlp.experts" in caplog.text
    quantize(plain, Quantization(small("gptq")))
    for site in Layout(model).stacks:
        twin = next(other for other in Layout(plain).stacks if other.id == site.id)
        for layer, other in zip(site.held.layers, twin.held.layers, strict=True):
            assert torch.equal(layer.codes, other.codes)


def test_the_functions_leave_no_hook():
    model = tiny("llama")
    calibrate(model, Quantization(small("gptq")), rows(3))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert walk.Walk(model, rows(1)).blocks == list(model.model.layers)
