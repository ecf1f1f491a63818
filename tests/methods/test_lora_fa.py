"""LoRA-FA: what it keeps for the backward pass, its dropout drawn twice, the corrected gradient, the frozen A."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftkit.adaptation import attach, count_stored, count_trained
from peftkit.layout import Layout, Site
from peftkit.methods.lora import LoRA
from peftkit.methods.lora_fa import LoRAFA
from peftkit.models.tiny import tiny

TOKENS, WIDTH, RANK = 32, 64, 4


def saved_bytes(method, compute=None):
    """Count what one forward pass keeps for its backward pass, weights apart."""
    linear = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    adapter = method.build(Site("linear", linear, WIDTH, WIDTH))
    known = {tensor.untyped_storage().data_ptr() for tensor in (*linear.parameters(), *adapter.parameters())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    x = torch.randn(2, TOKENS // 2, WIDTH, requires_grad=True) * 1.0
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = adapter(linear, x)
    y.sum().backward()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_x_alone_is_kept(dropout):
    assert saved_bytes(LoRAFA(rank=RANK, dropout=dropout)) == TOKENS * RANK * 4
    assert saved_bytes(LoRA(rank=RANK, dropout=dropout)) >= TOKENS * (RANK + WIDTH) * 4


def test_the_backward_pass_draws_the_same_mask():
    adapter = LoRAFA(rank=2, dropout=0.5).build(Site("linear", nn.Linear(8, 8), 8, 8))
    nn.init.normal_(adapter.B)
    x = torch.randn(5, 8, requires_grad=True)
    y = adapter(torch.zeros_like, x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    # y is linear in x under one mask, so that <gradient, x> is the sum of y; half of the gradient is dropped.
    assert torch.allclose((gradient * x).sum(), y.sum(), atol=1e-5)
    assert 5 <= int((gradient == 0).sum()) <= 35
    assert not torch.equal(y, adapter(torch.zeros_like, x))


def test_gradients_are_those_of_lora():
    linear = nn.Linear(6, 5)
    mine, theirs = (cls(rank=2).build(Site("linear", linear, 6, 5)) for cls in (LoRAFA, LoRA))
    with torch.no_grad():
        theirs.A.copy_(mine.A)
        theirs.B.copy_(mine.B.normal_())
    x = torch.randn(2, 3, 6, requires_grad=True)
    found, expected = ([*torch.autograd.grad(a(linear, x).square().sum(), [x, a.B])] for a in (mine, theirs))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_projected_gradient_is_the_nearest_to_that_of_the_weight():
    method = LoRAFA(rank=3, correction="projected")
    adapter = method.build(Site("linear", nn.Linear(7, 5), 7, 5))
    of_weight = torch.randn(5, 7)
    # By the chain rule the gradient of B is s G A^T.
    adapter.B.grad = adapter.scale * of_weight @ adapter.A.T
    method.after_backward({"linear": adapter}, 0, 1)
    nearest = torch.linalg.lstsq(adapter.scale * adapter.A.T, of_weight.T).solution.T
    assert torch.allclose(adapter.B.grad, nearest, rtol=1e-4, atol=1e-5)


def test_a_is_saved_and_never_trained():
    model = tiny("llama")
    adaptation = attach(model, [LoRAFA()])
    keys = [key for key, _ in adaptation.parameters()]
    assert all(key.endswith("/B") for key in keys)
    assert {key[:-1] + "A" for key in keys} | set(keys) == set(adaptation.state())
    # Two layers of q [32, 32] and v [16, 32]: B alone has rank 8 times 48.
    assert count_trained(LoRAFA(), Layout(model)) == 2 * 8 * 48


def test_what_is_stored_with_a_start_taken_out_of_the_weight():
    layout = Layout(tiny("llama"))
    method = LoRAFA(rank=RANK, targets=("q",), init="pissa")
    # A, B, A0 and B0 of 4 x 32 in two layers
    assert count_stored(method, layout) == 2 * 4 * RANK * 32
    assert count_trained(method, layout) == 2 * RANK * 32
