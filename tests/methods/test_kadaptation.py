"""KAdaptation by hand: the sum, what all sites share, the sizes that are refused."""

from __future__ import annotations

import torch
from torch import nn

from peftkit.adaptation import attach
from peftkit.layers.kronecker import Rule
from peftkit.layout import Site
from peftkit.methods.kadaptation import KAdaptation
from peftkit.models.tiny import tiny


def test_the_sum_by_hand():
    adapter = KAdaptation(division=2, scale=2.0).build(Site("linear", nn.Linear(4, 4), 4, 4))
    rule = Rule(2, 1.0)
    adapter.__dict__["shared"] = rule
    with torch.no_grad():
        rule.A.copy_(torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]))
        adapter.u.copy_(torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]]))
        adapter.v.copy_(torch.tensor([[[1.0, 2.0]], [[3.0, 1.0]]]))
    # A_1 (x) [[1, 2], [0, 0]] + A_2 (x) [[0, 0], [3, 1]], times s = 2.
    assert adapter.delta(torch.zeros(4, 4)).tolist() == [[2, 4, 0, 0], [0, 0, 6, 2], [4, 8, 0, 0], [0, 0, 0, 0]]


def test_it_is_the_sum_of_krons_and_its_forward_pass_builds_none_of_them():
    adaptation = attach(tiny("llama"), [KAdaptation(division=4, rank=2, targets="linear")])
    shared, adapters = adaptation.parts[0].shared, list(adaptation.parts[0].adapters.values())
    assert [key for key, _ in adaptation.parameters() if key.endswith("/A")] == ["0/shared/A"]
    for adapter in adapters:
        nn.init.normal_(adapter.u)
        dense = sum(torch.kron(a, u @ v) for a, u, v in zip(shared.A, adapter.u, adapter.v, strict=True))
        x = torch.randn(3, adapter.site.inputs)
        expected = torch.nn.functional.linear(x, dense)
        zero = torch.zeros(3, adapter.site.outputs)
        assert torch.allclose(adapter(lambda x, zero=zero: zero, x), expected, atol=1e-5)


def test_a_site_takes_the_products_that_divide_it():
    # Division 12 falls to 8 at q [32, 32] and v [16, 32], where 16 would divide and is above it.
    adaptation = attach(tiny("llama"), [KAdaptation(division=12)])
    assert {tuple(adapter.u.shape) for adapter in adaptation.parts[0].adapters.values()} == {(8, 4, 1), (8, 2, 1)}
