"""GaLore's choice of weights: the count, fused and tied modules, the rest of the parameters, and refusals."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.adaptation import attach, check_methods, count_trained
from peftkit.errors import PeftkitError
from peftkit.layout import Layout, own_parameters
from peftkit.methods.galore import GaLore
from peftkit.models.tiny import tiny


def trained(model, **options):
    """Attach and return the optimizer of every trained parameter, by name."""
    groups = attach(model, [GaLore(**options)]).groups(1e-2, 0.1)
    return {key.removeprefix("0/own/"): group for group in groups for key in group["keys"]}


def test_the_count_of_llama_2_7b_is_the_closed_form():
    config = AutoConfig.for_model(
        "llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert count_trained(GaLore(), Layout(model)) == 32 * (4 * 4096**2 + 3 * 4096 * 11008) == 6_476_005_376


def test_a_fused_module_is_trained_whole():
    names = {f"transformer.h.{layer}.attn.c_attn.weight" for layer in (0, 1)}
    assert set(trained(tiny("gpt2"), targets="q")) == names


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_rest_is_trained_by_the_optimizer_that_is_named(architecture):
    targets = set(trained(tiny(architecture)))
    model = tiny(architecture)
    groups = trained(model, rest="adamw", rank=3, interval=7, scale=2.0)
    assert set(groups) == {name for name, _ in own_parameters(model)}
    for name, group in groups.items():
        assert group["optimizer"] == ("galore" if name in targets else "adamw")
        assert ("rank" in group) == (name in targets)
        assert group["weight_decay"] == (0.1 if model.get_parameter(name).ndim == 2 else 0.0)
    assert {(g["rank"], g["interval"], g["scale"]) for name, g in groups.items() if name in targets} == {(3, 7, 2.0)}


def test_a_tied_head_is_its_embedding_once():
    model = tiny("gpt2")
    tied = [name for name, parameter in own_parameters(model) if parameter is model.get_output_embeddings().weight]
    assert len(tied) == 1
    assert {name: group["optimizer"] for name, group in trained(model, targets="head").items()} == {tied[0]: "galore"}


def test_a_rank_above_one_target_names_it_and_the_way_out():
    with pytest.raises(PeftkitError, match=r"rank 17 is larger than .*k_proj \[16, 32\] allows: choose at most 16"):
        attach(tiny("llama"), [GaLore(rank=17)])
    assert attach(tiny("llama"), [GaLore(rank=17, targets=("q", "o"))]).trainable == 4 * 32 * 32


def test_packed_weights_are_refused():
    model = tiny("llama")
    module = model.get_submodule("model.layers.1.mlp.up_proj")
    module.weight = torch.nn.Parameter(torch.zeros(64, 16, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(PeftkitError, match=r"layers\.1\.mlp\.up_proj keeps its weight in a packed format"):
        check_methods(model, [GaLore()])
