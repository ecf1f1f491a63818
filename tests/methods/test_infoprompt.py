"""InfoPrompt by hand: both bounds written out, and the prompt's method alone without them."""

from __future__ import annotations

import math

import pytest
import torch

from peftkit.adaptation import attach
from peftkit.layers.critics import Critic, bound
from peftkit.methods.infoprompt import InfoPrompt
from peftkit.models.tiny import tiny

IDS = torch.tensor([[5, 9, 14, 20, 33], [7, 7, 30, 41, 8]])


def run(method):
    model = tiny("llama").train()
    adaptation = attach(model, [method])
    soft = torch.tensor([adaptation.soft_ids] * 2, dtype=torch.long)
    states = []
    model.model.layers[-1].register_forward_hook(lambda module, args, output: states.append(output))
    logits = model(torch.cat([soft, IDS], 1)).logits
    return model, adaptation, logits, states[0]


def nce(right, wrong):
    """Return minus the bound of scores, one by one."""
    terms = [
        -math.log(math.exp(r) / (math.exp(r) + sum(math.exp(w) for w in row)))
        for r, row in zip(right, wrong, strict=True)
    ]
    return sum(terms) / len(terms) - math.log(1 + len(wrong[0]))


def test_the_terms_are_the_bounds_written_out():
    method = InfoPrompt(of={"prompt-tuning": {"length": 3}}, beta=0.3, gamma=0.7, negatives=4)
    model, adaptation, _, states = run(method)
    critic = next(adapter for adapter in adaptation.adapters() if isinstance(adapter, Critic))
    torch.manual_seed(3)
    found = adaptation.aux_loss().item()
    torch.manual_seed(3)
    with torch.no_grad():
        prompt = dict(adaptation.parameters())["0/model.embed_tokens/P"].mean(0)
        table = model.model.embed_tokens.weight
        others = table[torch.randint(96, (4,))]
        drawn = torch.randn(4, 32) * prompt.std() + prompt.mean()
        text, z = IDS.flatten(), states[:, 3:].flatten(0, 1)
        C, D = critic.shared.head, critic.shared.states
        head = nce([float(prompt @ C @ table[i]) for i in text], [[float(prompt @ C @ o) for o in others]] * 10)
        rep = nce([float(prompt @ D @ y) for y in z], [[float(p @ D @ y) for p in drawn] for y in z])
    assert found == pytest.approx(0.3 * head + 0.7 * rep, rel=1e-4)
    assert adaptation.aux_loss() is None


def test_no_bound_is_above_the_logarithm_of_what_is_told_apart():
    scores = torch.tensor([[30.0, -30.0], [0.0, 0.0]])
    found = [bound(row[:1], row[1:].expand(1, 7)).item() for row in scores]
    assert found[0] == pytest.approx(-math.log(8))
    assert found[1] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("of", ["prompt-tuning", "p-tuning-v2"])
def test_without_its_terms_it_is_the_method_of_the_prompt(of):
    method = InfoPrompt(of=of, beta=0.0, gamma=0.0)
    found = [run(each) for each in (method, method.prompt)]
    assert torch.equal(found[0][2], found[1][2])
    assert found[0][1].aux_loss() is None
    assert found[0][1].trainable == found[1][1].trainable


def test_the_critics_are_dropped_after_training():
    _, adaptation, _, _ = run(InfoPrompt(of={"p-tuning-v2": {"length": 3}}))
    size = 2 * 2 * 8
    assert adaptation.trainable == 2 * 3 * size + 2 * size * 32
    adaptation.finish()
    assert sum(tensor.numel() for tensor in adaptation.state().values()) == 2 * 3 * size
