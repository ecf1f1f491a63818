"""Packed examples, and examples that share a beginning, give the loss and the gradients of each by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses import loss_of, plain_loss
from subjects import attached, fed, randomise
from torch import Tensor

from peftkit.data.batches import collate
from peftkit.data.encode import Encoded
from peftkit.engine.engine import Arrangement, Engine, choose
from peftkit.engine.packed_batch import prompts
from peftkit.ports.context import context_of

CPU = torch.device("cpu")
FLAT, PADDED = Arrangement(), Arrangement(flat=False)


def rows() -> list[Encoded]:
    """Five rows of unequal length: three begin alike, one is another's beginning, and targets have parts in common."""
    generator = torch.Generator().manual_seed(7)
    a, b, c = (torch.randint(3, 96, (count,), generator=generator).tolist() for count in (12, 9, 14))
    texts = [a + b, a + b[:4] + c[:3], a, c, a + c[:5]]
    return [Encoded(ids, [-100] * min(9, len(ids) // 2) + ids[min(9, len(ids) // 2) :]) for ids in texts]


def measured(engine: Engine, parameters: dict[str, Any], given: list[Encoded]) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of a batch and the gradients by name."""
    packed = engine.pack(collate(given, 0))
    with engine.running(packed):
        loss = loss_of(engine, packed, 0.1)
        loss.backward()
    found = {key: p.grad for key, p in parameters.items() if p.grad is not None}
    for parameter in parameters.values():
        parameter.grad = None
    return loss.item(), found


@pytest.mark.costly
def test_packed_equals_one_by_one(name, position, architecture):
    model, adaptation = attached(name, position, architecture)
    randomise(adaptation)
    model.eval()
    given = fed(adaptation, rows())
    parameters = dict(adaptation.parameters())
    by_row = any(method.by_row for method in adaptation.methods)
    engine, notices = choose(model, given, 0, CPU, FLAT, adaptation.methods)
    assert bool(notices) == by_row
    assert engine.arrangement == (PADDED if by_row else FLAT)
    expected, gradients = 0.0, {}
    for row in given:
        with context_of(model).prompted(prompts(collate([row], 0))):
            loss = plain_loss(model, collate([row], 0), 0.1)
        loss.backward()
        expected += loss.item()
    for key, parameter in parameters.items():
        if parameter.grad is not None:
            gradients[key] = parameter.grad
            parameter.grad = None
    for layout in (PADDED,) if by_row else (FLAT, Arrangement(share=False), PADDED):
        value, found = measured(Engine(model, layout), parameters, given)
        assert value == pytest.approx(expected, abs=2e-4, rel=1e-6), layout
        assert found.keys() == gradients.keys(), layout
        for key, gradient in gradients.items():
            torch.testing.assert_close(found[key], gradient, atol=2e-5 + 1e-5 * gradient.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("name", ["lora", "prefix-tuning", "prompt-tuning"])
def test_no_token_sees_another_example(name: str):
    """Another example in the batch changes neither the logits nor the gradients of those that are there."""
    model, adaptation = attached(name, 0, "llama")
    randomise(adaptation)
    given = fed(adaptation, rows())
    engine = Engine(model.eval(), FLAT)

    def logits(batch: list[Encoded]) -> dict[int, Tensor]:
        """Return the logits of the first row by position."""
        packed = engine.pack(collate(batch, 0))
        with engine.running(packed), torch.no_grad():
            values = engine.logits(packed)
        at = {place: position for position, place in enumerate(packed.tree.rows[0].tolist())}
        return {at[place]: row for place, row in zip(packed.sources.tolist(), values, strict=True) if place in at}

    alone = logits(given[:1])
    for other in given[1:]:
        beside = logits([given[0], other])
        for position, row in alone.items():
            torch.testing.assert_close(beside[position], row, atol=1e-5, rtol=1e-5)
