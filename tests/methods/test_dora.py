"""DoRA by hand: its formula, its factored norm, what it never builds, and the norm held constant in training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from peftkit.adaptation import attach, count_trained
from peftkit.layout import Layout, Site
from peftkit.methods.dora import DoRA, Stretched
from peftkit.models.tiny import tiny


def seated(inputs=2, outputs=2, **options):
    linear = nn.Linear(inputs, outputs)
    linear.requires_grad_(False)
    return linear, DoRA(**options).build(Site("linear", linear, inputs, outputs))


def test_the_formula_by_hand():
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        linear.bias.copy_(torch.tensor([1.0, -1.0]))
    adapter = DoRA(rank=1, alpha=1).build(Site("linear", linear, 2, 2))
    assert adapter.m.tolist() == [5.0, 2.0]
    with torch.no_grad():
        adapter.A.copy_(torch.tensor([[1.0, 0.0]]))
        adapter.B.copy_(torch.tensor([[1.0], [0.0]]))
        adapter.m.copy_(torch.tensor([8.0, 1.0]))
    # V = [[4, 4], [0, 2]], n = [4 sqrt 2, 2], W' = [[8 / sqrt 2, 8 / sqrt 2], [0, 1]]; the bias is not scaled.
    y = adapter(linear, torch.tensor([[1.0, 1.0]]))
    assert y.flatten().tolist() == pytest.approx([16 / math.sqrt(2) + 1, 0.0], abs=1e-5)
    weight, bias = adapter.merge(linear.weight, linear.bias)
    assert weight.flatten().tolist() == pytest.approx([8 / math.sqrt(2), 8 / math.sqrt(2), 0.0, 1.0])
    assert bias.tolist() == [1.0, -1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_the_factored_norm_is_the_dense_one_and_merged_rows_have_the_trained_lengths(architecture, dtype):
    model = tiny(architecture).to(dtype)
    adaptation = attach(model, [DoRA(targets="linear", rank=4)])
    for adapter in adaptation.parts[0].adapters.values():
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.normal_(0.5, 0.3)
            weight = adapter.weight().float()
            dense = (weight + adapter.scale * adapter.B @ adapter.A).norm(dim=1)
            assert torch.allclose(adapter.norm(), dense, rtol=1e-5)
            assert torch.allclose(adapter.merge(weight, None)[0].norm(dim=1), adapter.m.abs(), rtol=1e-5)


class Sizes(TorchDispatchMode):
    """Records the number of elements of every new storage."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("detach", [True, False])
def test_a_step_builds_nothing_of_the_weights_size(detach):
    linear, adapter = seated(64, 48, rank=2, detach_norm=detach)
    x = torch.randn(3, 64, requires_grad=True)
    with Sizes([linear.weight]) as sizes:
        adapter(linear, x).sum().backward()
    assert 0 < sizes.largest <= 3 * 64


def test_the_norm_is_constant_in_the_backward_pass_of_training_alone():
    linear, adapter = seated(6, 5, rank=2, alpha=2)
    nn.init.normal_(adapter.B)
    x = torch.randn(4, 6)

    def expected(constant):
        changed = linear.weight + adapter.B @ adapter.A
        norm = changed.norm(dim=1).detach() if constant else changed.norm(dim=1)
        y = x @ (adapter.m / norm * changed.T) + linear.bias
        return torch.autograd.grad(y.square().sum(), list(adapter.parameters()))

    for training, constant in ((True, True), (False, False)):
        adapter.train(training)
        found = torch.autograd.grad(adapter(linear, x).square().sum(), list(adapter.parameters()))
        for mine, theirs in zip(found, expected(constant), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("biased", [True, False])
def test_the_backward_pass_is_that_of_the_formula(biased):
    shapes = (5, 4), (5, 2), (4, 2), (4,), *([(4,)] if biased else [])
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    y, thin, up, change, bias = (*given, None)[:5]
    plain = y + change * (y if bias is None else y - bias) + thin @ up.T
    assert torch.allclose(Stretched.apply(y, thin, up, change, bias), plain)
    assert torch.autograd.gradcheck(Stretched.apply, (y, thin, up, change, bias))


def test_small_changes_of_lengths_survive_bf16():
    linear, adapter = seated(4, 4, rank=1)
    linear.bfloat16()
    x = torch.ones(1, 4, dtype=torch.bfloat16)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        linear.bias.fill_(0.0)
        adapter.squares.fill_(4.0)
        adapter.m.fill_(2.0 * (1 + 2**-6))
    # 4 * (1 + 1/64) = 4.0625 is a bfloat16 number.
    assert adapter(linear, x).tolist() == [[4.0625] * 4]


def test_count():
    layout = Layout(tiny("llama"))
    # Two layers of q [32, 32] and v [16, 32] at rank 8: 8 (64 + 48) and magnitudes 32 + 16.
    assert count_trained(DoRA(), layout) == 2 * (8 * 112 + 48)
