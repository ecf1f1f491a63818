"""LoRA dropout: whole inputs and outputs are hidden, in turns of sequences, with the plain pair as the mean."""

from __future__ import annotations

import torch
from torch import nn

from peftkit.layout import Site
from peftkit.methods.lora import LoRA
from peftkit.methods.lora_dropout import LoRADropout


def build(method):
    adapter = method.build(Site("linear", nn.Linear(12, 10), 12, 10))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in adapter.parameters():
            parameter.normal_(generator=generator)
    return adapter


def test_whole_inputs_and_outputs_are_hidden():
    adapter = build(LoRADropout(rank=3, dropout=0.5))
    x = torch.ones(1, 7, 12, requires_grad=True)
    y = adapter(lambda value: torch.zeros(1, 7, 10), x)
    (of_x,) = torch.autograd.grad(y.sum(), x)
    for tensor in (y[0], of_x[0]):
        hidden = tensor == 0
        assert torch.equal(hidden[0], hidden.all(0))
        assert torch.equal(hidden.any(0), hidden.all(0))
        assert 0 < int(hidden[0].sum()) < tensor.shape[-1]


def test_the_sequences_take_the_samples_in_turn():
    adapter = build(LoRADropout(rank=3, dropout=0.5, samples=2))
    y = adapter(lambda value: torch.zeros(4, 1, 10), torch.ones(4, 1, 12))
    assert torch.equal(y[0], y[2])
    assert torch.equal(y[1], y[3])
    assert not torch.equal(y[0], y[1])


def test_the_mean_over_masks_is_the_plain_pair():
    torch.manual_seed(0)
    adapter = build(LoRADropout(rank=3, dropout=0.5, samples=20_000))
    x = torch.ones(20_000, 12)
    mean = adapter(lambda value: torch.zeros(20_000, 10), x).mean(0)
    expected = adapter.eval()(lambda value: torch.zeros(1, 10), x[:1])[0]
    assert (mean - expected).abs().max() < 0.05 * expected.abs().max()


def test_without_dropout_it_is_lora():
    x = torch.randn(3, 12)
    mine, theirs = (
        build(method)(lambda value: torch.zeros(3, 10), x)
        for method in (LoRADropout(rank=3, dropout=0.0), LoRA(rank=3))
    )
    assert torch.equal(mine, theirs)
