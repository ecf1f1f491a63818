"""SMoP by hand: the router's choice from the prompt alone, and one prompt as prompt tuning bit for bit."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach
from peftkit.methods.prompt_tuning import PromptTuning
from peftkit.methods.smop import SMoP
from peftkit.models.tiny import tiny
from peftkit.ports.context import context_of

IDS = torch.tensor([[5, 9, 14, 20, 33], [7, 7, 30, 41, 8], [60, 61, 62, 63, 64]])


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2"])
def test_one_prompt_is_prompt_tuning_bit_for_bit(architecture):
    found = []
    for method in (SMoP(prompts=1, length=4), PromptTuning(length=4)):
        model = tiny(architecture).train()
        adaptation = attach(model, [method], seed=3)
        soft = torch.tensor([adaptation.soft_ids] * 3)
        model(input_ids=torch.cat([soft, IDS], 1), labels=torch.cat([soft * 0 - 100, IDS], 1)).loss.backward()
        (prompt,) = [parameter for key, parameter in adaptation.parameters() if key.endswith("/P")]
        logits = model(input_ids=torch.cat([soft, IDS], 1)).logits
        found.append([prompt.detach().view(4, -1), prompt.grad.view(4, -1), logits])
    for mine, plain in zip(*found, strict=True):
        assert torch.equal(mine, plain)


def test_the_router_reads_the_mean_of_the_prompt_alone():
    model = tiny("llama")
    embedded = model.get_input_embeddings()(IDS).detach()
    adaptation = attach(model, [SMoP(prompts=3, length=2, init="random")])
    tensors = {key.rpartition("/")[2]: tensor.detach() for key, tensor in adaptation.parameters()}
    soft = torch.tensor([adaptation.soft_ids] * 3)
    lengths = (2, 3, 1)
    told = torch.arange(7)[None] < 2 + torch.tensor(lengths)[:, None]
    prompts = []
    for row, length in zip(embedded, lengths, strict=True):
        shares = torch.softmax(tensors["W"] @ (row[:length].sum(0) / length), 0)
        prompts.append(shares.max() * tensors["P"][shares.argmax()])
    assert len({row.argmax().item() for row in embedded[:, :2].mean(1) @ tensors["W"].T}) > 1
    with torch.no_grad(), context_of(model).prompted(told):
        result = model(input_ids=torch.cat([soft, IDS], 1)).logits
        expected = tiny("llama")(inputs_embeds=torch.cat([torch.stack(prompts), embedded], 1)).logits
    assert (result - expected).abs().max() <= 1e-5


def test_noise_is_of_training_alone():
    model = tiny("llama")
    adaptation = attach(model, [SMoP(prompts=2, noise=1.0)])
    ids = torch.cat([torch.tensor([adaptation.soft_ids] * 3), IDS], 1)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
