"""Every objective: one loss and one gradient however rows are computed, and nothing of rows that train nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from runs import loop, objective_named, passes, rows
from torch import Tensor

from peftkit.data.encode import Encoded
from peftkit.engine.engine import Arrangement
from peftkit.objectives import OBJECTIVES

NAMES = OBJECTIVES.names()
TERMS = 64
"""Sums of so many terms at most are compared, each rounded once."""
CLOSE = TERMS * torch.finfo(torch.float32).eps
PADDED, PACKED = Arrangement(flat=False), Arrangement()


def found(
    name: str, batches: Sequence[Sequence[Encoded]], arrangement: Arrangement
) -> tuple[float, int, dict[str, Tensor]]:
    """Return the loss, its terms, and the gradients of all batches together, divided by the terms."""
    objective = objective_named(name)
    plain = passes(objective, arrangement)
    made = [objective.collate(batch, 0) for batch in batches]
    result = plain.backward(made, max(1, sum(batch.trained for batch in made)))
    return result.loss, result.weight, {key: p.grad for key, p in plain.adaptation.parameters() if p.grad is not None}


def hold_equal(one: tuple[float, int, dict[str, Tensor]], other: tuple[float, int, dict[str, Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=CLOSE, abs=CLOSE)
    assert one[1] == other[1]
    assert one[2].keys() == other[2].keys()
    for key, gradient in one[2].items():
        scale = other[2][key].abs().max().item()
        torch.testing.assert_close(gradient, other[2][key], atol=4 * CLOSE * scale, rtol=0, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_packed_rows_equal_padded_ones(name):
    hold_equal(found(name, [rows()], PACKED), found(name, [rows()], PADDED))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 4])
def test_micro_batches_equal_one_batch(name, size):
    parts = [rows()[start : start + size] for start in range(0, len(rows()), size)]
    hold_equal(found(name, parts, PACKED), found(name, [rows()], PACKED))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arrangement", [PACKED, PADDED], ids=["packed", "padded"])
def test_rows_without_terms_count_nothing(name, arrangement):
    loss, weight, gradients = found(name, [rows(trained=False)], arrangement)
    assert math.isfinite(loss)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    if weight == 0:
        assert loss == 0
        assert not any(bool(gradient.any()) for gradient in gradients.values())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_minimised_and_measured(name):
    run = loop(objective_named(name), rows(), learning_rate=1e-2, max_steps=20)
    before = run.evaluate(run.batches)
    for _ in range(20):
        run.run_step()
    after = run.evaluate(run.batches)
    assert after.loss < before.loss
    assert all(math.isfinite(figure) for figure in after.scores.values())


@pytest.mark.parametrize("name", NAMES)
def test_its_options_build_it_again(name):
    for objective in (OBJECTIVES[name](), objective_named(name)):
        assert OBJECTIVES[name].from_options(objective.options()) == objective
    assert OBJECTIVES[name].summary.endswith(".")
