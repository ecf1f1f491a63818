"""A pair for each expert equals the same change of the stack of their weights, however the experts are computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from draw import marked
from torch import Tensor

import zoo
from peftkit.adaptation import attach, check_methods, count_trained
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS

HELD = ("gpt_oss", "jetmoe", "mixtral")
"""Inputs in front and biases, experts in attention too, and the common form."""
FAMILIES = [
    *(
        "aria_text",
        "cohere2_moe",
        "deepseek_v3",
        "ernie4_5_moe",
        "gpt_oss",
        "granitemoehybrid",
        "inkling_text",
        "jamba",
    ),
    *("jetmoe", "lfm2_moe", "llama4_text", "minimax_m2", "mixtral", "nemotron_h", "olmoe", "phimoe", "qwen2_moe"),
    *("qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "zaya"),
]
IDS = torch.arange(3, 15)[None]


def logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def lora(**options: Any) -> Any:
    return METHODS["lora"].from_options({"targets": "experts", "rank": 2, **options})


def randomise(adaptation: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


@pytest.mark.parametrize("family", marked(FAMILIES, HELD))
def test_pairs_of_experts_equal_changed_stacks(family):
    model = zoo.build(family)
    twin = copy.deepcopy(model)
    layout = Layout(model)
    assert layout.stacks
    stacks = {name for name, p in model.named_parameters() if p.dim() == 3 and "expert" in name}
    assert {site.id for site in layout.stacks} >= {name for name in stacks if "router" not in name}
    with torch.no_grad():
        base = logits(model)
        adaptation = attach(model, [lora()])
        assert (logits(model) - base).abs().max() <= 1e-6
        randomise(adaptation)
        adapted = logits(model)
        for adapter in adaptation.adapters():
            site = adapter.site
            weight = twin.get_submodule(site.path)._parameters[site.stack]
            for expert in range(site.experts):
                change = 8 * adapter.B[expert] @ adapter.A[expert]
                weight[expert] += change.T if site.transposed else change
        assert (adapted - base).abs().max() > 1e-3
        assert (logits(twin) - adapted).abs().max() <= 1e-5 * adapted.abs().max()
        before = {key: value.clone() for key, value in model.state_dict().items() if ".seated" not in key}
        adaptation.merge_()
        assert (logits(model) - adapted).abs().max() <= 1e-5 * adapted.abs().max()
        adaptation.unmerge_()
        assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("family", marked(FAMILIES, HELD))
def test_gradients_of_pairs_are_those_of_the_stacks(family):
    model = zoo.build(family)
    adaptation = attach(model, [lora()])
    randomise(adaptation)
    adapters = list(adaptation.adapters())
    logits(model).square().mean().backward()
    twin = zoo.build(family)
    stacks = []
    for adapter in adapters:
        weight = twin.get_submodule(adapter.site.path)._parameters[adapter.site.stack]
        with torch.no_grad():
            weight.copy_(adapter.merge(weight, None)[0])
        stacks.append(weight)
    of_stacks = torch.autograd.grad(logits(twin).square().mean(), stacks)
    used = 0
    for adapter, gradient in zip(adapters, of_stacks, strict=True):
        whole = gradient.transpose(1, 2) if adapter.site.transposed else gradient
        of_up = 8 * whole @ adapter.A.transpose(1, 2)
        used += int(of_up.abs().max() > 0)
        assert adapter.B.grad is not None
        assert torch.allclose(adapter.B.grad, of_up, rtol=1e-3, atol=1e-4 * float(of_up.abs().max() + 1e-12)), (
            adapter.site
        )
    assert used == len(adapters)


@pytest.mark.parametrize("way", ["eager", "batched_mm", "grouped_mm"])
def test_however_the_experts_are_computed(way):
    model = zoo.build("mixtral")
    adaptation = attach(model, [lora()])
    randomise(adaptation)
    with torch.no_grad():
        expected = logits(model)
        model.config._experts_implementation = way
        assert torch.allclose(logits(model), expected, atol=1e-5)


def test_a_pair_for_each_expert_is_counted_saved_and_loaded():
    model = zoo.build("mixtral")
    layout = Layout(model)
    method = lora()
    # Two stacks in each of four layers: [4, 128, 32] and [4, 32, 64].
    assert count_trained(method, layout) == 4 * 4 * 2 * ((128 + 32) + (32 + 64))
    adaptation = attach(model, [method])
    randomise(adaptation)
    assert adaptation.trainable == count_trained(method, layout)
    expected, state = logits(model), {key: value.clone() for key, value in adaptation.state().items()}
    assert "0/model.layers.0.mlp.experts.gate_up_proj/A" in state
    other = zoo.build("mixtral")
    attach(other, [method], seed=5).load_state(state)
    assert torch.equal(logits(other), expected)
    assert Layout(model).resolve("*.experts.down_proj")[0].experts == 4


@pytest.mark.parametrize(
    ("method", "options", "what"),
    [
        ("sora", {}, "sora: .*experts.gate_up_proj is a stack of the weights of experts, which it does not adapt: use"),
        ("ssf", {}, "ssf: .* use one of .*lora"),
        ("lora", {"dropout": 0.1}, "which it does not adapt with dropout: use one of .* without dropout"),
        ("lora", {"rank": 65}, r"rank 65 is larger than .*gate_up_proj \[128, 32\]"),
    ],
)
def test_what_a_stack_does_not_take_is_refused(method, options, what):
    with pytest.raises(PeftkitError, match=what):
        check_methods(zoo.build("mixtral"), [METHODS[method].from_options({"targets": "experts", **options})])


def test_a_model_without_experts_has_no_such_role():
    with pytest.raises(PeftkitError, match="'experts' matches no linear module of this llama model"):
        Layout(zoo.build("llama")).resolve("experts")


def test_what_is_covered_counts_experts():
    layout = Layout(zoo.build("mixtral"))
    assert any(
        "the targets cover" in line for line in METHODS["lora"].from_options({"targets": "linear"}).notices(layout)
    )
    assert not METHODS["lora"].from_options({"targets": ["linear", "experts"]}).notices(layout)


@pytest.mark.parametrize("family", marked(FAMILIES, HELD))
def test_a_scale_of_experts_inputs_equals_scaled_stacks(family):
    model = zoo.build(family)
    adaptation = attach(model, [METHODS["ia3"].from_options({})])
    randomise(adaptation)
    twin = zoo.build(family)
    scales = {site.site.id: site for site in adaptation.adapters() if site.site.stack is not None}
    assert scales
    assert set(scales) < {site.id for site in Layout(twin).stacks}
    with torch.no_grad():
        adapted = logits(model)
        dense = attach(twin, [METHODS["ia3"].from_options({})])
        dense.load_state(adaptation.state())
        for key, adapter in scales.items():
            weight = twin.get_submodule(adapter.site.path)._parameters[adapter.site.stack]
            for expert, scale in enumerate(adapter.scale):
                weight[expert] *= scale[:, None] if adapter.site.transposed else scale[None, :]
            next(a for a in dense.adapters() if a.site.id == key).scale.fill_(1)
        assert (logits(twin) - adapted).abs().max() <= 1e-5 * adapted.abs().max()
        adaptation.merge_()
        assert (logits(model) - adapted).abs().max() <= 1e-5 * adapted.abs().max()
