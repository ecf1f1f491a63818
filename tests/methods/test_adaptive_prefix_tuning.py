"""Adaptive prefix tuning by hand: p-tuning v2 where nothing is weighed, and the weights of a prompt that is told."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach
from peftkit.methods.adaptive_prefix_tuning import AdaptivePrefixTuning
from peftkit.methods.p_tuning_v2 import PTuningV2
from peftkit.models.tiny import tiny
from peftkit.ports.context import context_of

IDS = torch.tensor([[5, 9, 14, 20, 33], [7, 7, 30, 41, 8]])


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2"])
def test_with_all_weights_a_half_twice_it_is_p_tuning_v2(architecture):
    logits = []
    for method in (AdaptivePrefixTuning(length=4), PTuningV2(length=4)):
        model = tiny(architecture)
        adaptation = attach(model, [method])
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for key, parameter in adaptation.parameters():
                leaf = key.rpartition("/")[2]
                if leaf in ("K", "V"):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
                else:
                    parameter.fill_({"W": 0.0, "l": 2.0}[leaf])
            logits.append(model(IDS).logits)
    assert (logits[0] - logits[1]).abs().max() <= 1e-6


def test_the_weights_are_those_of_the_last_token_of_the_prompt():
    """One layer alone: what its attention reads is the norm of the embeddings."""
    model = tiny("llama", num_hidden_layers=1)
    adaptation = attach(model, [AdaptivePrefixTuning(length=3)])
    ((_, prefix),) = adaptation.parts[0].adapters.items()
    with torch.no_grad():
        prefix.W.normal_()
        read = model.model.layers[0].input_layernorm(model.model.embed_tokens(IDS))
        expected = torch.sigmoid(torch.stack([read[0, 2], read[1, 0]]) @ prefix.W.T)
    found = []
    weights = prefix.weights
    prefix.weights = lambda: found.append(weights()) or found[-1]
    with torch.no_grad(), context_of(model).prompted(torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()):
        out = model(IDS, use_cache=True)
    torch.testing.assert_close(found[0], expected)
    with torch.no_grad():
        model(IDS[:, :1], past_key_values=out.past_key_values)
    assert len(found) == 1
