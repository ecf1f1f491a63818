"""APrompt by hand: without queries it is two other methods, and its queries move what follows."""

from __future__ import annotations

import pytest
import torch

import zoo
from peftkit.adaptation import attach
from peftkit.layout import Layout
from peftkit.methods.aprompt import APrompt
from peftkit.methods.p_tuning_v2 import PTuningV2
from peftkit.methods.prompt_tuning import PromptTuning
from peftkit.models.tiny import tiny

IDS = torch.tensor([[5, 9, 14, 20, 33], [7, 7, 30, 41, 8]])


def logits(model, adaptation):
    soft = torch.tensor([adaptation.soft_ids] * 2, dtype=torch.long)
    return model(torch.cat([soft, IDS], 1)).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_without_queries_it_is_p_tuning_v2_and_a_prompt(architecture):
    found = []
    for methods in ([APrompt(length=3, queries=0, keys=2)], [PromptTuning(length=3), PTuningV2(length=2)]):
        model = tiny(architecture)
        adaptation = attach(model, methods)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, parameter in sorted(adaptation.parameters(), key=lambda pair: pair[0].partition("/")[2]):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            found.append(logits(model, adaptation))
    assert torch.equal(*found)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_queries_are_those_of_the_prompts_first_rows_and_learn(architecture):
    model, plain = tiny(architecture), tiny(architecture)
    adaptation = attach(model, [APrompt(length=3, queries=2, keys=0)])
    prompt, *queries = (parameter for _, parameter in adaptation.parameters())
    assert len(queries) == 1, "nobody reads what the last layer makes of the prompt"
    with torch.no_grad():
        queries[0].normal_()
    logits(model, adaptation).logsumexp(-1).sum().backward()
    assert queries[0].grad.abs().max() > 1e-4
    width, layers = 32, plain.model.layers if architecture == "llama" else plain.transformer.h
    linear = layers[0].self_attn.q_proj if architecture == "llama" else layers[0].attn.c_attn

    def asked(module, args, output):
        output[:, :2, :width] += queries[0].detach()
        return output

    linear.register_forward_hook(asked)
    with torch.no_grad():
        inputs = torch.cat([prompt.expand(2, -1, -1), plain.get_input_embeddings()(IDS)], 1)
        expected = plain(inputs_embeds=inputs).logits
        assert (logits(model, adaptation) - expected).abs().max() <= 1e-5


def test_there_are_no_more_queries_than_rows_and_none_where_no_map_makes_them():
    assert attach(tiny("llama"), [APrompt(length=3, queries=9, keys=0)]).trainable == 3 * 32 + 3 * 32
    model, method = zoo.build("deepseek_v3"), APrompt(length=3, keys=0)
    assert method.notices(Layout(model)) == ["aprompt: this deepseek_v3 model has no map of queries, and gets none"]
    assert len(attach(model, [method]).parameters()) == 1
