"""Prefix propagation by hand: each layer's states of the prompt are raised, and its count."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach
from peftkit.methods.p_tuning_v2 import PTuningV2
from peftkit.methods.prefix_propagation import PrefixPropagation
from peftkit.methods.prompt_tuning import PromptTuning
from peftkit.models.tiny import tiny

IDS = torch.tensor([[5, 9, 14, 20, 33], [7, 7, 30, 41, 8]])


def prompted(model, adaptation):
    soft = torch.tensor([adaptation.soft_ids] * 2, dtype=torch.long)
    with torch.no_grad():
        return model(torch.cat([soft, IDS], 1)).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_each_layer_adds_its_rows_to_the_states_of_the_prompt(architecture):
    model = tiny(architecture)
    adaptation = attach(model, [PrefixPropagation(length=3, deviation=1.0)])
    first, second = (parameter.detach() for _, parameter in adaptation.parameters())
    result = prompted(model, adaptation)
    plain = tiny(architecture)
    layers = plain.model.layers if architecture == "llama" else plain.transformer.h

    def raised(module, args):
        x = args[0].clone()
        x[:, :3] += second
        return (x, *args[1:])

    layers[1].register_forward_pre_hook(raised)
    with torch.no_grad():
        inputs = torch.cat([first.expand(2, -1, -1), plain.get_input_embeddings()(IDS)], 1)
        expected = plain(inputs_embeds=inputs).logits
    assert (result - expected).abs().max() <= 1e-5
    assert adaptation.trainable == 2 * 3 * 32


def test_with_nothing_added_it_is_prompt_tuning():
    model, plain = tiny("llama"), tiny("llama")
    adaptation = attach(model, [PrefixPropagation(length=4)])
    with torch.no_grad():
        dict(adaptation.parameters())["0/model.layers.0/P"].zero_()
    other = attach(plain, [PromptTuning(length=4)])
    assert torch.equal(prompted(model, adaptation), prompted(plain, other))


def test_the_combination_is_half_a_prompt_and_half_keys_and_values():
    adaptation = attach(tiny("llama"), [PrefixPropagation(length=5, variant="combine")])
    keys = attach(tiny("llama"), [PTuningV2(length=2)]).trainable
    assert adaptation.trainable == 2 * 3 * 32 + keys
    assert len(adaptation.soft_ids) == 3
