"""SSF by hand: scale and shift, where a shift finds a place, the two starts, and a bias that comes and goes."""

from __future__ import annotations

import torch
from torch import nn

from peftkit.adaptation import attach, count_trained
from peftkit.adaptation.merge import merge_module
from peftkit.layout import Layout, Rows, Site
from peftkit.methods.ssf import SSF
from peftkit.models.tiny import tiny


def test_the_formula_by_hand():
    linear = nn.Linear(2, 2)
    adapter = SSF().build(Site("linear", linear, 2, 2))
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        linear.bias.copy_(torch.tensor([1.0, 1.0]))
        adapter.gamma.copy_(torch.tensor([2.0, 3.0]))
        adapter.beta.copy_(torch.tensor([0.5, -1.0]))
    # W x + b = [4, 8]; times gamma [8, 24]; plus beta.
    assert adapter(linear, torch.ones(1, 2)).tolist() == [[8.5, 23.0]]
    weight, bias = adapter.merge(linear.weight, linear.bias)
    assert weight.tolist() == [[2.0, 4.0], [9.0, 12.0]]
    assert bias.tolist() == [2.5, 2.0]


def test_a_shift_is_where_a_bias_is_or_everywhere():
    llama, gpt2 = Layout(tiny("llama")), Layout(tiny("gpt2"))
    # v [16, 32] in two layers of llama without biases; v [32, 32] in two of gpt2 with biases.
    assert count_trained(SSF(targets="v"), llama) == 2 * 16
    assert count_trained(SSF(targets="v", shift="always"), llama) == 2 * 2 * 16
    assert count_trained(SSF(targets="v"), gpt2) == 2 * 2 * 32


def test_a_part_of_a_fused_module_without_bias_gets_one_that_goes_again():
    linear = nn.Linear(2, 4, bias=False)
    before = linear.weight.detach().clone()
    adapter = SSF(shift="always").build(Site("linear", linear, 2, 2, "k", rows=Rows(2, 2, 4)))
    nn.init.constant_(adapter.beta, 3.0)
    merged = merge_module(linear, [adapter], keep_base=True)
    assert linear.bias.tolist() == [0.0, 0.0, 3.0, 3.0]
    merged.restore()
    assert linear.bias is None
    assert torch.equal(linear.weight, before)


def test_the_official_start_is_near_the_base():
    adaptation = attach(tiny("gpt2"), [SSF(variant="official")])
    gammas, betas = (
        torch.cat([p.detach() for key, p in adaptation.parameters() if key.endswith(name)])
        for name in ("gamma", "beta")
    )
    assert abs(gammas.mean() - 1) < 0.005
    assert abs(betas.mean()) < 0.005
    assert 0.015 < gammas.std() < 0.025
    assert 0.015 < betas.std() < 0.025
