"""LoRA by hand: its formula, scales, counts, patterns and the published numbers of parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.adaptation import attach, count_trained
from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site, own_parameters
from peftkit.methods.lora import LoRA
from peftkit.models.tiny import tiny


def test_the_formula_by_hand():
    linear = nn.Linear(2, 2, bias=False)
    adapter = LoRA(rank=1, alpha=3).build(Site("linear", linear, 2, 2))
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        adapter.A.copy_(torch.tensor([[1.0, 2.0]]))
        adapter.B.copy_(torch.tensor([[1.0], [-1.0]]))
    x = torch.tensor([[1.0, 1.0]])
    # W x = [1, 2]; s B A x = 3 * [1, -1] * 3 = [9, -9]
    assert adapter(linear, x).tolist() == [[10.0, -7.0]]
    weight, _ = adapter.merge(linear.weight, None)
    assert weight.tolist() == [[4.0, 6.0], [-3.0, -4.0]]


def test_counts_of_llama_2_7b_are_the_published_ones():
    config = AutoConfig.for_model(
        "llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layout = Layout(model)
    assert count_trained(LoRA(rank=8, targets=("q", "v")), layout) == 4_194_304
    assert count_trained(LoRA(rank=8, targets="linear"), layout) == 19_988_480


def test_patterns_give_modules_their_own_rank_and_alpha():
    model = tiny("llama")
    method = LoRA(targets="linear", rank_pattern={"mlp": 2, "model.layers.1.*": 3}, alpha_pattern={"q": 8.0})
    adaptation = attach(model, [method])
    ranks = {key: adapter.A.shape[0] for key, adapter in adaptation.parts[0].adapters.items()}
    assert ranks["model.layers.0.mlp.up_proj"] == 2
    assert ranks["model.layers.1.self_attn.q_proj"] == 3
    assert ranks["model.layers.0.self_attn.q_proj"] == 8
    assert adaptation.parts[0].adapters["model.layers.0.self_attn.q_proj"].scale == 1.0
    assert adaptation.parts[0].adapters["model.layers.0.self_attn.k_proj"].scale == 2.0


def test_rank_stabilised_scale():
    site = Layout(tiny("llama")).resolve("q")[0]
    assert LoRA(rank=16, alpha=16, rank_stabilised=True).scale_at(site) == 16 / math.sqrt(16)


def test_dropout_acts_in_training_on_the_adapter_alone():
    model = tiny("llama")
    adaptation = attach(model, [LoRA(dropout=0.5, targets="linear")])
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.normal_(0, 0.1)
    ids = torch.tensor([[5, 6, 7]])
    first, second = model(ids).logits, model(ids).logits
    assert torch.equal(first, second)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    with adaptation.disabled():
        assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(("bias", "expected"), [("none", 0), ("adapted", 2 * 32), ("all", None)])
def test_biases(bias, expected):
    model = tiny("opt")
    own = [name for name, _ in attach(model, [LoRA(targets=("q",), bias=bias)]).parameters() if "/own/" in name]
    every = [name for name, _ in own_parameters(model) if name.endswith("bias")]
    assert len(own) == (len(every) if expected is None else expected / 32)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rnk": 4}, "Did you mean 'rank'"),
        ({"rank": "8"}, "rank: .*integer.*'8'"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"dropout": 1.0}, "less than 1"),
        ({"alpha": True}, "alpha"),
        ({"init": "kaimng"}, "Did you mean 'kaiming'"),
        ({"targets": 3}, "targets"),
        ({"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_wrong_options_are_told(options, told):
    with pytest.raises(PeftkitError, match=told):
        LoRA.from_options(options).sites(Layout(tiny("llama")))


def test_the_start_depends_on_the_site_and_the_seed_alone():
    def start(targets, seed):
        adaptation = attach(tiny("llama"), [LoRA(targets=targets)], seed=seed)
        return adaptation.state()["0/model.layers.1.self_attn.v_proj/A"]

    assert torch.equal(start(("q", "v"), 1), start(("v",), 1))
    assert not torch.equal(start(("v",), 1), start(("v",), 2))
