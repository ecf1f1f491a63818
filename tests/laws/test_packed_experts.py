"""Adapters of experts: one for each weight of a stack, on a dense stack and on a packed one alike."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from draw import marked, share, some
from storages import dequantized, small

import zoo
from peftkit.adaptation import attach, check_methods, count_stored, count_trained
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.methods.inits import INITS, Measured, splits
from peftkit.models.quantize import Quantization, forget_originals, quantize
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.quantization.stack import PackedStack
from peftkit.quantization.weight import dense

IDS = torch.arange(3, 15)[None]
METHODS_OF_WEIGHTS = [name for name, cls in METHODS.items() if getattr(cls, "by_weight", False)]
FAMILIES = ("mixtral", "gpt_oss")
"""Outputs in front, and inputs in front beside biases."""
CROSS = [(name, family, form) for name in METHODS_OF_WEIGHTS for family in FAMILIES for form in QUANTIZERS.names()]
DRAWN = [
    (name, family, form)
    for name in share("packed", METHODS_OF_WEIGHTS, 2)
    for family in some(name, FAMILIES, 1)
    for form in some(name, ["nf4", "nf2", "int8", "int4", "int3"], 1)
]


def method(name: str, **options: Any) -> Any:
    where = {"feedforward": "experts", "targets": ()} if name == "ia3" else {"targets": "experts"}
    size = {"rank": 4} if hasattr(METHODS[name], "rank") else {}
    plain = {"dropout": 0.0} if hasattr(METHODS[name], "dropout") else {}
    return METHODS[name].from_options({**where, **size, **plain, **options})


def base(family: str, form: str | None = None, **changes: Any) -> Any:
    model = zoo.build(family, num_hidden_layers=2, **changes) if family == "mixtral" else zoo.build(family, **changes)
    if form is not None:
        quantize(model, Quantization(None, {"experts": small(form)}))
    return model


def randomise(adaptation: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def gradients(model: Any, adaptation: Any) -> dict[str, torch.Tensor]:
    """Return logits, and gradients of what is trained and of the embedded tokens."""
    given = model.get_input_embeddings()(IDS).detach().requires_grad_()
    out = model(inputs_embeds=given, use_cache=False).logits
    out.square().mean().backward()
    found = {key: parameter.grad for key, parameter in adaptation.parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {"logits": out.detach(), "given": given.grad, **found}  # type: ignore[dict-item]


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1e-6))


@pytest.mark.parametrize(("name", "family", "form"), marked(CROSS, DRAWN))
def test_on_packed_stacks_it_is_what_it_is_on_the_dequantized_ones(name, family, form):
    model = base(family, form)
    twin = dequantized(model)
    with torch.no_grad():
        plain = logits(model)
    adaptation, other = attach(model, [method(name)]), attach(twin, [method(name)])
    assert adaptation.trainable == count_trained(method(name), Layout(model)) > 0
    assert adaptation.total == other.total
    with torch.no_grad():
        assert close(logits(model), plain)
    randomise(adaptation)
    other.load_state(adaptation.state())
    found, expected = gradients(model, adaptation), gradients(twin, other)
    assert not close(found["logits"], plain)
    for key, value in expected.items():
        assert close(found[key], value), key
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        adapted = logits(model)
        adaptation.merge_()
        assert close(logits(model), adapted)
        adaptation.unmerge_()
        assert torch.equal(logits(model), adapted)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


ALONE = [(name, family) for name in METHODS_OF_WEIGHTS for family in FAMILIES]


@pytest.mark.parametrize(("name", "family"), marked(ALONE, share("alone", ALONE)))
def test_each_expert_has_the_adapter_that_it_would_have_alone(name, family):
    model = base(family)
    adaptation = attach(model, [method(name)])
    randomise(adaptation)
    stacked = next(adapter for adapter in adaptation.adapters() if adapter.site.stack is not None)
    whole = stacked.site.held.detach()
    merged = stacked.merge(whole, None)[0]
    for index, one in enumerate(stacked.site.each()):
        alone = method(name).build(one)
        alone.__dict__["shared"] = stacked.shared
        for key, tensor in stacked.tensors.items():
            {**dict(alone.named_parameters()), **dict(alone.named_buffers())}[key].data.copy_(tensor[index])
        with torch.no_grad():
            expected = alone.merge(dense(one.module), None)[0]
            x = torch.randn(5, one.inputs)
            assert torch.allclose(alone(lambda v, m=one.module: v @ dense(m).T, x), x @ expected.T, atol=1e-4)
        assert torch.allclose(merged[index].T if stacked.site.transposed else merged[index], expected, atol=1e-6)


@pytest.mark.parametrize("name", marked(METHODS_OF_WEIGHTS, share("no dense", METHODS_OF_WEIGHTS)))
def test_no_dense_weight_is_kept_for_the_backward_pass(name):
    model = base("mixtral", "nf4").train()
    adaptation = attach(model, [method(name)])
    randomise(adaptation)
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    shapes = {tuple(layer.shape) for layer in model.modules() if isinstance(layer, PackedStack)}
    shapes |= {(count, inputs, outputs) for count, outputs, inputs in shapes}
    shapes |= {shape[1:] for shape in shapes}
    for way in ("grouped_mm", "eager"):
        model.config._experts_implementation = way
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits(model).square().mean().backward()
        assert kept
        assert not shapes & {tuple(tensor.shape) for tensor in kept}


@pytest.mark.parametrize(
    "init", [name for name in INITS.names() if splits(name) and not isinstance(INITS[name], Measured)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_start_is_found_for_each_expert_alone(init, family):
    answers = init in ("loftq", "lq-lora")
    model = base(family, "nf2" if answers else None)
    plain = base(family)
    with torch.no_grad():
        before, wanted = logits(model), logits(plain)
        lora = method("lora", init=init, rank=8)
        adaptation = attach(model, [lora], keep_base=True)
        after = logits(model)
    assert any(bool(parameter.abs().max() > 0) for key, parameter in adaptation.parameters() if key.endswith("/B"))
    if answers:
        assert (after - wanted).abs().mean() < 0.9 * (before - wanted).abs().mean()
    else:
        assert (after - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    adapter = next(iter(adaptation.adapters()))
    site = next(site for site in Layout(plain).stacks if site.id == adapter.site.id)
    alone = method("lora", init=init, rank=8).build(site.each()[1])
    if not answers and init != "pissa-fast":
        alone.start()
        assert torch.allclose(adapter.A[1], alone.A, atol=1e-5)
        assert torch.allclose(adapter.B0[1], alone.B0, atol=1e-5)
    state = {key: value.clone() for key, value in adaptation.state().items()}
    other = base(family, "nf2" if answers else None)
    attach(other, [method("lora", init=init, rank=8)], loading=True).load_state(state)
    with torch.no_grad():
        assert torch.equal(logits(other), after)


def test_a_start_that_answers_packing_is_refused_where_nothing_is_packed_or_the_original_is_gone():
    with pytest.raises(PeftkitError, match=r"init 'loftq' answers what packing loses, .*gate_up_proj is not packed"):
        attach(base("mixtral"), [method("lora", init="loftq")])
    model = base("mixtral", "nf4")
    forget_originals(model)
    with pytest.raises(PeftkitError, match=r"the original weight of .*gate_up_proj is not there"):
        attach(model, [method("lora", init="loftq")])


def test_what_trains_the_weights_themselves_is_refused_on_packed_stacks():
    with pytest.raises(PeftkitError, match=r"experts.gate_up_proj keeps its weight in a packed format"):
        check_methods(base("mixtral", "nf4"), [METHODS["full"].from_options({})])


def test_a_model_with_adapters_of_experts_is_copied_and_moved_as_any():
    model = base("mixtral", "nf4")
    adaptation = attach(model, [method("dora")])
    randomise(adaptation)
    twin = copy.deepcopy(model).to(torch.float64).to(torch.float32)
    with torch.no_grad():
        assert close(logits(twin), logits(model))
    assert count_stored(method("dora"), Layout(model)) == sum(t.numel() for t in adaptation.state().values())
    assert [name for name, module in model.named_modules() if isinstance(module, PackedStack)]
