"""Values of indices, counts and masks are known where tensors hold nothing, and what is chosen by scores is drawn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from peftkit.estimation.live import Live, fake

pytestmark = pytest.mark.usefixtures("hollow")


@pytest.fixture
def hollow():
    before = torch.get_rng_state()
    with fake(), Live():
        yield
    assert torch.equal(torch.get_rng_state(), before), "the random state is left alone"


def test_what_follows_from_numbers_that_are_there_is_computed():
    ids = torch.tensor([[3, 1, 3], [0, 3, 1]])
    assert int((ids == 3).sum()) == 3
    assert (ids == 3).nonzero().shape == (3, 2)
    assert torch.bincount(ids.flatten()).shape == (4,)
    assert ids.flatten().unique().shape == (3,)
    assert torch.equal(ids, ids.clone())
    assert not torch.equal(ids, ids + 1)
    ids.add_(1)
    assert int(ids.max()) == 4


def test_tokens_are_sent_to_experts_that_are_drawn():
    """Each token goes to two different ones of five, and the experts have all of them together."""
    scores = torch.zeros(40, 8).uniform_().softmax(-1)
    weights, chosen = scores.topk(2)
    counts = F.one_hot(chosen, 8).sum((0, 1)).tolist()
    assert sum(counts) == 80
    assert min(counts) > 0
    taken = 0
    for expert in range(8):
        place, token = torch.where(torch.eq(chosen.T, expert))
        taken += len(weights[token, place])
    assert taken == 80
    assert all(len(set(row)) == 2 for row in chosen.tolist())


def test_a_mask_takes_as_many_as_it_lets_through_and_one_without_values_all():
    x = torch.zeros(6, 4, requires_grad=True)
    mask = torch.tensor([True, False, True, True, False, False])
    y = x[mask]
    assert y.shape == (3, 4)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (6, 4)
    unknown = torch.zeros(6).uniform_() > 0.5
    assert x[unknown].shape == (6, 4)
    assert torch.masked_select(x, mask[:, None]).shape == (12,)


def test_what_is_changed_in_place_by_something_unknown_is_unknown():
    counts = torch.tensor([5, 6])
    counts[0] = torch.zeros(1, dtype=torch.long).random_()[0]
    assert int(counts[0]) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_of_any_dtype(dtype: torch.dtype):
    x, weights = torch.zeros(10, 6, dtype=dtype, requires_grad=True), torch.zeros(3, 6, 5, dtype=dtype).requires_grad_()
    y = F.grouped_mm(x, weights, offs=torch.tensor([2, 6, 10], dtype=torch.int32))
    assert (y.shape, y.dtype) == ((10, 5), dtype)
    y.sum().backward()
    for tensor in (x, weights):
        assert tensor.grad is not None
        assert (tensor.grad.shape, tensor.grad.dtype) == (tensor.shape, dtype)
