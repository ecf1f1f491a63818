"""PEQA, AlphaTuning, QA-LoRA: what they train of a stored weight, and merges that leave every code as it is."""

from __future__ import annotations

import pytest
import torch
from storages import small, stored

from peftkit.adaptation import attach, check_methods
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.models.load import load
from peftkit.models.quantize import Quantization, quantize
from peftkit.models.tiny import tiny
from peftkit.plan import plan
from peftkit.ports.stored import Scales
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS, formats
from peftkit.quantization.weight import BINARY, INTEGERS, ZERO_POINTS, dense, shift, steps
from peftkit.recipe import ModelSection, QuantizationSection
from peftkit.recipe import load as load_recipe

IDS = torch.arange(3, 20)[None]
PAIRS = [
    (method, name)
    for method, cls in METHODS.items()
    for name in QUANTIZERS.names()
    if cls.needs is not None and cls.needs in small(name).traits
]


def packed(architecture="llama", quantizer=None):
    model = tiny(architecture)
    quantize(model, Quantization(quantizer))
    return model


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def attached(model, method, **options):
    adaptation = attach(model, [METHODS[method].from_options(options)])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in adaptation.parts[0].adapters.values():
            # Scales move by a share of what they are.
            size = adapter.steps().scale if isinstance(adapter, Scales) else 0.2
            for parameter in adapter.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size * 0.25)
    return adaptation


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_formats_of_a_trait_begin_with_the_one_nearest_to_four_bits():
    assert formats(INTEGERS) == ["int4", "int3", "int2", "int8", "awq", "gptq"]
    assert formats(BINARY) == ["bcq4", "bcq3", "bcq2"]
    # Each input of an awq weight has a step of its own, and a zero point would have to be each one's.
    assert formats(ZERO_POINTS) == [name for name in formats(INTEGERS) if name != "awq"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_a_merge_that_stays_packed_computes_the_same_with_the_same_codes(method, name, architecture):
    model = packed(architecture, small(name))
    before = {path: layer.packed() for path, layer in layers(model).items()}
    base, total = logits(model), sum(part.numel() for parts in before.values() for part in parts.values())
    adaptation = attached(model, method)
    adapted = logits(model)
    adaptation.merge_packed_()
    assert (logits(model) - adapted).abs().max() <= 1e-5
    assert (adapted - base).abs().max() > 1e-2
    moved = 0
    for path, layer in layers(model).items():
        now = layer.packed()
        assert layer.held is None
        assert torch.equal(now["codes"], before[path]["codes"])
        moved += any(key not in before[path] or not torch.equal(part, before[path][key]) for key, part in now.items())
    assert moved
    # Scales and zero points in fp32 are all that may be larger.
    assert sum(part.numel() for layer in layers(model).values() for part in layer.packed().values()) <= 1.5 * total
    adaptation.unmerge_()
    assert torch.equal(logits(model), adapted)
    for path, layer in layers(model).items():
        assert all(torch.equal(part, before[path][key]) for key, part in layer.packed().items())


def test_merged_packed_weights_open_from_disk(tmp_path):
    from safetensors.torch import load_file, save_file

    model = packed(quantizer=small("int4"))
    adaptation = attached(model, "qa-lora", targets="linear")
    adapted = logits(model)
    adaptation.merge_packed_()
    for path, layer in layers(model).items():
        save_file(layer.packed(), tmp_path / path)
    other = packed(quantizer=small("int4"))
    for path, layer in layers(other).items():
        layer.fill(load_file(tmp_path / path))
    assert (logits(other) - adapted).abs().max() <= 1e-5


def test_peqa_writes_its_scales_and_its_gradient_is_the_sum_over_a_group():
    model = packed(quantizer=small("int4"))
    adaptation = attached(model, "peqa", targets="q", layers="0")
    (adapter,) = adaptation.parts[0].adapters.values()
    layer, found = adapter.site.module, adapter.steps()
    assert torch.equal(found.scale.repeat_interleave(16, 1) * found.basis(), layer.unpacked(torch.float32))
    x = torch.randn(5, 32, requires_grad=True)
    g = torch.randn(5, 32)
    adapter(lambda value: torch.nn.functional.linear(value, dense(layer)), x).backward(g)
    weight_gradient = g.T @ x.detach()
    expected = torch.stack(
        [(weight_gradient * found.basis())[:, :16].sum(1), (weight_gradient * found.basis())[:, 16:].sum(1)], 1
    )
    assert torch.allclose(adapter.scale.grad, expected, atol=1e-4)
    whole = dense(layer) + adapter.delta(dense(layer)).detach()
    assert torch.allclose(x.grad, g @ whole, atol=1e-4)
    wanted = found.scale + adapter.scale.detach()
    adaptation.merge_packed_()
    assert torch.equal(steps(layer).scale, wanted)
    assert not any(key.startswith("scale_") for key in layer.parts)


def test_a_forward_pass_keeps_no_weight():
    model = packed(quantizer=small("int4"))
    (adapter, *_) = attached(model, "peqa", targets="q").parts[0].adapters.values()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        adapter(lambda value: value, torch.randn(5, 32, requires_grad=True))
    assert set(kept) == {(5, 32), (32, 2)}


@pytest.mark.parametrize("pool", ["mean", "sum"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["int4", "int2"])
def test_qa_lora_merges_into_zero_points_as_exactly_as_fp32_keeps_them(name, symmetric, pool):
    quantizer = QUANTIZERS[name](group_size=16, symmetric=symmetric)
    model = packed(quantizer=quantizer)
    adaptation = attached(model, "qa-lora", targets="linear", pool=pool)
    expected = {}
    for path, adapter in adaptation.parts[0].adapters.items():
        layer = adapter.site.module
        scale, basis = steps(layer).scale.double(), steps(layer).basis().double()
        adapter.double()
        x = torch.randn(4, adapter.site.inputs, dtype=torch.float64)
        pooled = x.unflatten(-1, (-1, 16)).mean(-1) if pool == "mean" else x.unflatten(-1, (-1, 16)).sum(-1)
        change = adapter.scale * pooled @ adapter.A.T @ adapter.B.T
        # In fp64 throughout, the zero points z - s B A / scale hold the pair to the last digits.
        offset = adapter._offset().detach()
        moved = scale.repeat_interleave(16, 1) * (basis + (offset / scale).repeat_interleave(16, 1))
        whole = scale.repeat_interleave(16, 1) * basis
        assert (x @ moved.T - (x @ whole.T + change)).abs().max() <= 1e-9
        expected[path] = (moved.detach(), scale)
        adapter.float()
    adaptation.merge_packed_()
    for path, adapter in adaptation.parts[0].adapters.items():
        layer = adapter.site.module
        parts = layer.packed()
        assert parts["zeros"].dtype == torch.float32
        exact, scale = expected[path]
        # Half a unit in the last place of a zero point, and what fp32 rounds in reading the weight.
        bound = scale.abs() * (parts["zeros"].view_as(scale).abs() + 16) * 2**-22
        difference = (dense(layer).double() - exact).abs()
        assert (difference <= bound.repeat_interleave(16, 1)).all(), path


def test_groups_of_zeros_take_an_offset():
    weight = torch.zeros(8, 32)
    weight[0] = torch.linspace(-1, 1, 32)
    for double_quant in (False, True):
        layer = PackedLinear.of(weight, None, QUANTIZERS["int4"](group_size=16, double_quant=double_quant))
        before, offset = dense(layer), torch.linspace(-3, 3, 16).view(8, 2)
        undo = shift(layer, None, offset)
        assert torch.allclose(dense(layer), before + offset.repeat_interleave(16, 1), atol=1e-6)
        undo()
        assert torch.equal(dense(layer), before)


def test_alphatuning_moves_the_first_scale_alone():
    model = packed(quantizer=small("bcq3"))
    before = {path: layer.packed()["scale"] for path, layer in layers(model).items()}
    adaptation = attached(model, "alphatuning")
    assert adaptation.trainable == sum(layer.out_features for layer in layers(model).values())
    adaptation.merge_packed_()
    for path, layer in layers(model).items():
        assert torch.equal(layer.scale[:, 1:], before[path][:, 1:])
        assert not torch.equal(layer.scale[:, 0], before[path][:, 0])


def test_several_methods_merge_packed_together():
    torch.manual_seed(0)
    model = packed(quantizer=small("int4"))
    adaptation = attach(model, [METHODS[name].from_options({}) for name in ("qa-lora", "peqa")])
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    adapted = logits(model)
    adaptation.merge_packed_()
    assert (logits(model) - adapted).abs().max() <= 1e-5


def test_what_has_no_equal_in_stored_scales_is_refused_with_nothing_changed():
    model = packed(quantizer=small("int4"))
    adaptation = attach(model, [METHODS[name].from_options({}) for name in ("peqa", "lora")])
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(PeftkitError, match="no equal in the scales of a stored weight"):
        adaptation.merge_packed_()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    model = stored(["peqa"])
    first, _ = (attach(model, [METHODS["peqa"].from_options({})], name) for name in ("one", "two"))
    with pytest.raises(PeftkitError, match="'two' is attached to the same stored weights"):
        first.merge_packed_()


@pytest.mark.parametrize("method", [name for name, cls in METHODS.items() if cls.needs is not None])
def test_another_storage_is_refused_with_those_that_do(method):
    able = ", ".join(formats(METHODS[method].needs))
    for model in (tiny("llama"), packed(quantizer=small("nf4"))):
        with pytest.raises(PeftkitError, match=f"{method}: the weight of .* set quantization to one of {able}"):
            attach(model, [METHODS[method].from_options({})])
    outline = load(ModelSection(name="bundled/tiny"), device="meta", weights=False).model
    with pytest.raises(PeftkitError, match="set quantization to one of"):
        check_methods(outline, [METHODS[method].from_options({})])
    section = QuantizationSection(format=formats(METHODS[method].needs)[0])
    outline = load(ModelSection(name="bundled/tiny"), device="meta", weights=False, quantization=section).model
    check_methods(outline, [METHODS[method].from_options({})])


def test_columns_kept_apart_take_scales_and_no_offset():
    with pytest.raises(PeftkitError, match=f"not stored as {ZERO_POINTS}"):
        attach(packed(quantizer=QUANTIZERS["int8"](outliers=0.1)), [METHODS["qa-lora"].from_options({})])
    model = packed(quantizer=QUANTIZERS["int8"](outliers=0.1))
    before = {path: layer.outliers for path, layer in layers(model).items()}
    attached(model, "peqa").merge_packed_()
    assert all(torch.equal(layer.outliers, before[path]) for path, layer in layers(model).items())


def test_a_plan_tells_the_storage_that_is_missing():
    keys = {"model": "bundled/tiny", "method": "peqa", "dataset": "bundled/e2e"}
    with pytest.raises(PeftkitError, match="set quantization to one of int4"):
        plan(load_recipe(keys))
    assert plan(load_recipe({**keys, "quantization": "int4"})).trainable > 0
