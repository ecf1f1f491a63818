"""VeRA: its formula by hand, the published count, and shared matrices that follow from their seed everywhere."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.adaptation import attach, count_trained
from peftkit.layout import Layout, Site
from peftkit.methods.vera import Projection, VeRA
from peftkit.models.tiny import tiny


def test_the_formula_by_hand():
    linear = nn.Linear(2, 2, bias=False)
    method = VeRA(rank=1)
    adapter = method.build(Site("linear", linear, 2, 2))
    shared = adapter.__dict__["shared"] = Projection(method, 3, 3)
    with torch.no_grad():
        linear.weight.zero_()
        shared.A.copy_(torch.tensor([[1.0, 2.0, 9.0]]))
        shared.B.copy_(torch.tensor([[1.0], [-1.0], [9.0]]))
        adapter.b.copy_(torch.tensor([1.0, 2.0]))
        adapter.d.copy_(torch.tensor([3.0]))
    # diag(b) B d A with the first two columns of A and rows of B: [1, -2]^T 3 [1, 2].
    assert adapter.merge(linear.weight, None)[0].tolist() == [[3.0, 6.0], [-6.0, -12.0]]
    assert adapter(linear, torch.ones(1, 2)).tolist() == [[9.0, -18.0]]


def test_the_count_of_llama_2_7b_is_the_published_one():
    config = AutoConfig.for_model(
        "llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        layout = Layout(AutoModelForCausalLM.from_config(config))
    assert count_trained(VeRA(rank=256), layout) == 278_528


def test_the_shared_matrices_are_those_of_the_mersenne_twister():
    """The low 24 bits of each number of MT19937, as numpy draws them, over 2^24: no rounding depends on a machine."""
    projection = Projection(VeRA(rank=5, projection_seed=3), 7, 6)
    twister = numpy.random.MT19937()
    twister._legacy_seeding(3)
    drawn = (twister.random_raw(5 * 7 + 6 * 5) & 0xFFFFFF) / 2**24
    for mine, part, fan in ((projection.A, drawn[:35], 7), (projection.B, drawn[35:], 5)):
        bound = math.sqrt(6 / fan)
        expected = torch.tensor(part * 2 * bound - bound).reshape(mine.shape).float()
        assert torch.allclose(mine, expected, atol=1e-6)


@pytest.mark.parametrize("save", [False, True])
def test_the_shared_matrices_are_saved_by_choice_and_equal_either_way(save):
    torch.manual_seed(5)
    adaptation = attach(tiny("llama"), [VeRA(rank=4, save_projection=save)], seed=1)
    assert ({"0/shared/A", "0/shared/B"} <= set(adaptation.state())) == save
    torch.manual_seed(6)
    other = attach(tiny("llama"), [VeRA(rank=4)], seed=2)
    assert torch.equal(adaptation.parts[0].shared.A, other.parts[0].shared.A)
    adapters = list(adaptation.parts[0].adapters.values())
    assert all(adapter.shared is adapters[0].shared for adapter in adapters)
