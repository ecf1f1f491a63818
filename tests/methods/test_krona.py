"""KronA by hand: the product, its rank, the sides of its factors, and the product beside a block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftkit.adaptation import count_trained
from peftkit.layout import Layout, Site
from peftkit.methods.krona import KronA
from peftkit.methods.krona_b import KronAB
from peftkit.methods.krona_b_res import KronABRes
from peftkit.models.tiny import tiny


def test_the_product_by_hand():
    linear = nn.Linear(4, 4, bias=False)
    adapter = KronA(scale=2.0).build(Site("linear", linear, 4, 4))
    with torch.no_grad():
        linear.weight.zero_()
        adapter.A.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        adapter.B.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    weight = adapter.merge(linear.weight, None)[0]
    # Each element of A stands for that many times B, all times s = 2.
    assert weight.tolist() == [[2, 0, 4, 0], [2, 2, 4, 4], [0, 0, 2, 0], [0, 0, 2, 2]]
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert adapter(linear, x).tolist() == [[14.0, 34.0, 6.0, 14.0]]


def test_its_rank_is_the_product_of_the_ranks():
    adapter = KronA().build(Site("linear", nn.Linear(24, 36), 24, 36))
    with torch.no_grad():
        adapter.A.copy_(torch.randn(6, 2) @ torch.randn(2, 4))
        adapter.B.copy_(torch.randn(6, 3) @ torch.randn(3, 6))
    assert torch.linalg.matrix_rank(adapter.delta(torch.zeros(36, 24))) == 6


@pytest.mark.parametrize(
    ("factor", "size", "side"), [(None, 768, 24), (None, 127, 1), (4, 128, 4), (5, 128, 4), (64, 128, 64)]
)
def test_the_sides_divide_the_weight(factor, size, side):
    assert KronA(factor=factor).side(size) == side


def test_count():
    # q [32, 32] has A [4, 4] and B [8, 8], v [16, 32] has A [4, 4] and B [4, 8]; two layers.
    assert count_trained(KronA(), Layout(tiny("llama"))) == 2 * (16 + 64 + 16 + 32)


def test_the_product_beside_a_block_by_hand():
    block = nn.Tanh()
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    for method, residual in ((KronAB(scale=2.0), 0), (KronABRes(scale=2.0), 10)):
        adapter = method.build(Site("mlp", block, 4, 4))
        assert torch.equal(adapter(block, x), block(x))
        with torch.no_grad():
            adapter.A.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
            adapter.B.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
            if residual:
                adapter.r.fill_(residual)
        # The same product as above, and of the residual ten times the input.
        expected = block(x) + torch.tensor([[14.0, 34.0, 6.0, 14.0]]) + residual * x
        assert torch.allclose(adapter(block, x), expected), method.name
