from __future__ import annotations

import math

import pytest
import torch
from losses import whole_loss

from peftkit.data.batches import collate
from peftkit.data.encode import Encoded
from peftkit.models.tiny import ARCHITECTURES, tiny
from peftkit.objectives.cross_entropy import CrossEntropyOf


def sum_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    return CrossEntropyOf(smoothing).total(logits.flatten(0, 1), targets.flatten(), None)


def test_sum_of_cross_entropies_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)], [math.log(4.0), 0.0], [5.0, 5.0]]])
    targets = torch.tensor([[1, 1, -100]])
    # p(1) = 3/4 at the first position and 1/5 at the second; the third is masked.
    assert sum_cross_entropy(logits, targets).item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 5))


def test_smoothing_spreads_over_the_vocabulary():
    logits = torch.tensor([[[0.0, math.log(3.0)]]])
    targets = torch.tensor([[1]])
    expected = -0.9 * math.log(3 / 4) - 0.1 * (math.log(3 / 4) + math.log(1 / 4)) / 2
    assert sum_cross_entropy(logits, targets, 0.1).item() == pytest.approx(expected)


def test_sum_is_taken_in_fp32():
    logits = torch.zeros(1, 3000, 2, dtype=torch.bfloat16)
    targets = torch.zeros(1, 3000, dtype=torch.long)
    assert sum_cross_entropy(logits, targets).item() == pytest.approx(3000 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_value_and_gradients_equal_the_plain_loss(architecture: str):
    """The oracle is the loss that transformers computes itself, over all positions and per trained token."""
    model = tiny(architecture)
    rows = [
        Encoded([5, 6, 7, 8, 9, 10], [-100, -100, -100, -100, 9, 10]),
        Encoded([11, 12, 13, 14], [-100, -100, -100, 14]),
    ]
    batch = collate(rows, 0)
    plain = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    plain.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = whole_loss(model, batch) / batch.trained
    loss.backward()
    assert loss.item() == pytest.approx(plain.item(), abs=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, atol=1e-5, rtol=1e-4)


def test_all_masked_batch_gives_zero_and_no_nan():
    model = tiny("llama")
    batch = collate([Encoded([5, 6, 7], [-100, -100, -100])], 0)
    loss = whole_loss(model, batch)
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


def test_one_token_has_nothing_to_predict():
    batch = collate([Encoded([5], [5])], 0)
    assert whole_loss(tiny("llama"), batch).item() == 0.0
