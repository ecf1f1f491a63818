"""What a body is given is heard once in a pass: in models of more than text, and where layers read token ids."""

from __future__ import annotations

import pytest
import torch

import zoo
from peftkit.adaptation import attach
from peftkit.layout import Layout
from peftkit.methods.dept import DePT
from peftkit.methods.p_tuning_v2 import PTuningV2
from peftkit.methods.prompt_tuning import PromptTuning

IDS = torch.tensor([[5, 9, 14, 20], [7, 7, 30, 41]])
SOFT = 3
WHOLE = ("gemma3", "idefics3", "llama4", "llava", "mllama", "qwen2_5_vl")
"""Models of images and text: one embeds the tokens outside its decoder, another gives the decoder the ids."""


def logits(model, ids=IDS, **rest):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **rest).logits


def heard(model, adaptation):
    """Return the tokens that adapters were told of in a pass."""
    logits(model)
    return adaptation.context.tokens


@pytest.mark.parametrize("family", ["llama", "opt", *WHOLE])
def test_positions_are_raised_once(family):
    model = zoo.build(family)
    options = {"length": SOFT, "deviation": 1.0}
    unshifted = attach(model, [PTuningV2(**options)], seed=1)
    expected = logits(model, position_ids=(torch.arange(4) + SOFT).expand(2, -1))
    other = logits(model)
    unshifted.remove()
    attach(model, [PTuningV2(**options, shift=True)], seed=1)
    assert (logits(model) - expected).abs().max() <= 1e-5
    assert (other - expected).abs().max() > 1e-3


@pytest.mark.parametrize("family", [*WHOLE, "xlstm"])
def test_ids_are_heard_where_a_decoder_is_given_embeddings_or_no_mask(family):
    model = zoo.build(family)
    adaptation = attach(model, [DePT(length=SOFT, rank=2, positions=8)])
    tokens = heard(model, adaptation)
    assert torch.equal(tokens.ids, IDS)
    assert torch.equal(tokens.positions, torch.arange(4).expand(2, -1))


def test_the_bodies_of_a_model_of_more_than_text_are_its_own_and_its_decoders():
    model = zoo.build("llava")
    assert Layout(model).bodies() == [model.model.language_model, model.model]
    for family, path in {"opt": "model.decoder", "xlstm": "backbone"}.items():
        model = zoo.build(family)
        assert Layout(model).bodies() == [model.get_submodule(path)]


def test_layers_that_choose_experts_by_token_id_see_the_padding_token():
    model = zoo.build("deepseek_v4")
    layout, padding = Layout(model), model.config.pad_token_id or 0
    assert layout.told_tokens() == list(model.model.layers)
    seen = []
    router = model.model.layers[0].mlp.gate
    router.register_forward_pre_hook(lambda module, args: seen.append(args[1].clone()))
    adaptation = attach(model, [PromptTuning(length=SOFT)])
    assert layout.told_tokens() == list(model.model.layers)
    logits(model, torch.cat([torch.tensor([adaptation.soft_ids] * 2), IDS], 1))
    assert torch.equal(seen[0], torch.cat([torch.full((2, SOFT), padding), IDS], 1))
    adaptation.remove()
    assert not any(layer._forward_pre_hooks for layer in model.model.layers)
