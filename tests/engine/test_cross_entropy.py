"""The cross-entropy in chunks is the plain one, in value and gradient, for every kind of head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from subjects_of_heads import HEADS, headed
from torch import Tensor

from peftkit.engine import chunked_head
from peftkit.engine.chunked_head import chunked_sum, chunked_values
from peftkit.engine.head import Head
from peftkit.kernels import cross_entropy as kernel
from peftkit.objectives.cross_entropy import CrossEntropyOf


def ready(kind: str) -> tuple[Head, Any, Tensor, dict[str, Tensor]]:
    model, trained = headed(kind)
    head = Head(model)
    with torch.no_grad():
        hidden = head.hidden(input_ids=torch.arange(3, 33)[None])[0].clone()
    return head, model, hidden, trained


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_gradients_equal_the_plain_loss(kind, smoothing, weighted, monkeypatch):
    monkeypatch.setattr(chunked_head, "CHUNK", 7)
    monkeypatch.setattr(kernel, "ROWS", 3)
    head, _, hidden, trained = ready(kind)
    targets = torch.randint(0, 96, (30,), generator=torch.Generator().manual_seed(0))
    weights = torch.arange(1, 31).float() if weighted else None
    leaf = hidden.clone().requires_grad_()
    plain = F.cross_entropy(head.logits(leaf), targets, reduction="none", label_smoothing=smoothing)
    plain = plain.sum() if weights is None else plain @ weights
    expected = torch.autograd.grad(3 * plain, [leaf, *trained.values()])
    other = hidden.clone().requires_grad_()
    loss = chunked_sum(head, CrossEntropyOf(smoothing), other, targets, weights)
    assert (head.plain() is not None) == (kind in ("plain", "tied"))
    result = torch.autograd.grad(3 * loss, [other, *trained.values()])
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for one, two in zip(result, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4 * max(1.0, two.abs().max().item()), rtol=1e-4)
    with torch.no_grad():
        assert chunked_sum(head, CrossEntropyOf(smoothing), hidden, targets, weights).item() == pytest.approx(
            plain.item(), rel=1e-5
        )


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_values_and_their_gradients_equal_the_plain_ones(kind, smoothing, monkeypatch):
    """What is made of the values is no sum: each has a gradient of its own."""
    monkeypatch.setattr(chunked_head, "CHUNK", 7)
    head, _, hidden, trained = ready(kind)
    targets = torch.randint(0, 96, (30,), generator=torch.Generator().manual_seed(0))
    leaf, other = (hidden.clone().requires_grad_() for _ in range(2))
    plain = F.cross_entropy(head.logits(leaf), targets, reduction="none", label_smoothing=smoothing)
    values = chunked_values(head, CrossEntropyOf(smoothing), other, targets)
    torch.testing.assert_close(values, plain, atol=1e-5, rtol=1e-5)
    expected = torch.autograd.grad(plain.sigmoid().square().sum(), [leaf, *trained.values()])
    result = torch.autograd.grad(values.sigmoid().square().sum(), [other, *trained.values()])
    for one, two in zip(result, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5 * max(1.0, two.abs().max().item()), rtol=1e-4)


def test_nothing_to_predict_gives_zero_and_no_nan():
    head, _, hidden, _ = ready("plain")
    leaf = hidden.clone().requires_grad_()
    loss = chunked_sum(head, CrossEntropyOf(), leaf[:0], torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is None or bool((leaf.grad == 0).all())


def test_large_logits_do_not_overflow():
    head, model, hidden, _ = ready("plain")
    leaf = (hidden * 1e4).requires_grad_()
    targets = torch.arange(30)
    loss = chunked_sum(head, CrossEntropyOf(), leaf, targets)
    loss.backward()
    expected = F.cross_entropy(F.linear(leaf.detach(), model.lm_head.weight), targets, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert bool(leaf.grad.isfinite().all())


def test_no_more_logits_than_a_chunk_are_there_at_once(monkeypatch):
    monkeypatch.setattr(chunked_head, "CHUNK", 4)
    head, _, hidden, _ = ready("plain")
    seen: list[int] = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args, out: (seen.append(out.numel()), mm(*args, out=out))[1])
    chunked_sum(head, CrossEntropyOf(), hidden.clone().requires_grad_(), torch.arange(30))
    assert seen
    assert max(seen) <= 4 * 96
