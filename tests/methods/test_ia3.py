"""(IA)^3 by hand: what it scales, its merge with biases, its published count, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import zoo
from peftkit.adaptation import attach, count_trained
from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.methods.ia3 import IA3
from peftkit.models.tiny import tiny


@pytest.mark.parametrize(
    ("role", "output", "merged", "bias"),
    [
        # Outputs 2 and 3 times: W x + b = [4, 8] becomes [8, 24].
        ("k", [[8.0, 24.0]], [[2.0, 4.0], [9.0, 12.0]], [2.0, 3.0]),
        # Inputs 2 and 3 times: W [2, 3] = [8, 18], and b is not scaled.
        ("down", [[9.0, 19.0]], [[2.0, 6.0], [6.0, 12.0]], [1.0, 1.0]),
    ],
)
def test_the_formula_by_hand(role, output, merged, bias):
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        linear.bias.copy_(torch.tensor([1.0, 1.0]))
    adapter = IA3().build(Site("linear", linear, 2, 2, role))
    with torch.no_grad():
        adapter.scale.copy_(torch.tensor([2.0, 3.0]))
    assert adapter(linear, torch.ones(1, 2)).tolist() == output
    weight, changed = adapter.merge(linear.weight, linear.bias)
    assert weight.tolist() == merged
    assert changed.tolist() == bias


def test_the_count_of_llama_2_7b_is_the_published_one():
    config = AutoConfig.for_model(
        "llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        layout = Layout(AutoModelForCausalLM.from_config(config))
    assert count_trained(IA3(), layout) == 614_400


def test_one_layer_is_not_scaled_on_both_sides():
    with pytest.raises(PeftkitError, match="targets and feedforward both name"):
        IA3(targets=("k", "down")).sites(Layout(tiny("llama")))


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "hunyuan_v1_dense", "lfm2", "persimmon"])
def test_a_norm_behind_the_keys_is_told_and_leaves_their_direction(family):
    model: Any = zoo.build(family).eval()
    (line,) = [line for line in IA3().notices(Layout(model)) if "norms the keys" in line]
    assert "their direction changes and no length does" in line
    adaptation = attach(model, [IA3(feedforward=())])
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        scales = [parameter for key, parameter in adaptation.parameters() if _of_keys(adaptation, key)]
        for scale in scales:
            scale.mul_(3.0)
        # Epsilon in the norm is all that tells lengths apart.
        assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-3)
        for scale in scales:
            scale[::2] = -1.0
        assert not torch.allclose(model(input_ids=ids).logits, before, atol=1e-2)


def _of_keys(adaptation: Any, key: str) -> bool:
    return adaptation.parts[0].adapters[key.split("/")[1]].site.role == "k"


@pytest.mark.parametrize("family", ["llama", "gpt2", "bitnet"])
def test_keys_without_a_norm_need_no_word(family):
    assert not [line for line in IA3().notices(Layout(zoo.build(family))) if "norms the keys" in line]
    assert not [line for line in IA3(targets=("v",)).notices(Layout(zoo.build("qwen3"))) if "norms the keys" in line]
