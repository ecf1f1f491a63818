"""MoSLoRA by hand: the mixer in the product, LoRA as its special case, its count."""

from __future__ import annotations

import torch
from torch import nn

from peftkit.adaptation import count_trained
from peftkit.layout import Layout, Site
from peftkit.methods.lora import LoRA
from peftkit.methods.moslora import MoSLoRA
from peftkit.models.tiny import tiny


def test_the_mixer_by_hand():
    linear = nn.Linear(2, 2, bias=False)
    adapter = MoSLoRA(rank=2, alpha=4).build(Site("linear", linear, 2, 2))
    with torch.no_grad():
        linear.weight.zero_()
        adapter.A.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        adapter.M.copy_(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        adapter.B.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    # B M = [[0, 1], [2, 1]]; times s = 2.
    assert adapter.merge(linear.weight, None)[0].tolist() == [[0.0, 2.0], [4.0, 2.0]]
    assert adapter(linear, torch.tensor([[1.0, 1.0]])).tolist() == [[2.0, 6.0]]


def test_without_mixing_it_is_lora():
    linear = nn.Linear(6, 5)
    mixed, plain = (cls(rank=3).build(Site("linear", linear, 6, 5)) for cls in (MoSLoRA, LoRA))
    with torch.no_grad():
        mixed.M.copy_(torch.eye(3))
        plain.A.copy_(mixed.A)
        plain.B.copy_(mixed.B.normal_())
    x = torch.randn(4, 6)
    assert torch.equal(mixed(linear, x), plain(linear, x))


def test_the_mixer_costs_rank_squared_and_may_start_orthogonal():
    layout = Layout(tiny("llama"))
    assert count_trained(MoSLoRA(rank=4), layout) - count_trained(LoRA(rank=4), layout) == 4 * 16
    mixer = MoSLoRA(rank=4, mixer="orthogonal").build(layout.resolve("q")[0]).M
    assert torch.allclose(mixer @ mixer.T, torch.eye(4), atol=1e-6)
