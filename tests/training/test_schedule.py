from __future__ import annotations

import pytest

from peftkit.errors import PeftkitError
from peftkit.training.schedule import scale, warmup_steps


def test_warmup_is_a_fraction_below_one_and_steps_from_one_on():
    assert warmup_steps(0.03, 200) == 6
    assert warmup_steps(1, 200) == 1
    assert warmup_steps(50, 20) == 20
    assert warmup_steps(0, 20) == 0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", [1 / 3, 2 / 3, 1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2]),
    ],
)
def test_each_schedule_by_hand(schedule: str, expected: list[float]):
    assert [scale(schedule, step, 6, 2) for step in range(6)] == pytest.approx(expected)


def test_every_step_learns():
    for schedule in ("constant", "linear", "cosine"):
        for steps in (1, 2, 7):
            for warmup in (0.0, 0.03, 0.9, 3, 100):
                assert all(0 < scale(schedule, step, steps, warmup) <= 1 for step in range(steps))


def test_unknown_schedule_names_the_nearest():
    with pytest.raises(PeftkitError, match="Did you mean 'cosine'"):
        scale("cosin", 0, 10, 0)
