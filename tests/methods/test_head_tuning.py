"""Head tuning by hand: what a tied head does to the embedding, and a head with a bias."""

from __future__ import annotations

import torch

from peftkit.adaptation import attach
from peftkit.methods.head_tuning import HeadTuning
from peftkit.models.tiny import tiny


def test_the_embedding_of_a_tied_head_stays_when_the_change_is_merged():
    model = tiny("gpt2")
    embedding = model.transformer.wte.weight
    before = embedding.detach().clone()
    assert model.lm_head.weight is embedding
    adaptation = attach(model, [HeadTuning()])
    assert adaptation.trainable == 96 * 32
    with torch.no_grad():
        adaptation.parameters()[0][1].fill_(0.5)
    adaptation.merge_()
    assert torch.equal(model.transformer.wte.weight, before)
    assert torch.allclose(model.lm_head.weight, before + 0.5)
    assert not model.config.tie_word_embeddings
    adaptation.unmerge_()
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_bias_of_the_head_is_trained_with_it():
    assert attach(tiny("phi"), [HeadTuning()]).trainable == 96 * 32 + 96


def test_no_gradient_runs_through_the_layers_below():
    model = tiny("llama")
    attach(model, [HeadTuning()])
    seen = []
    model.model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    assert model(torch.tensor([[3, 4, 5]])).logits.requires_grad
    assert seen == [False]
