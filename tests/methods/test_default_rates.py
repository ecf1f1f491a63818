"""Default learning rates are those that the search found, with the same number of trials for each method."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from peftkit.adaptation import check_methods
from peftkit.errors import PeftkitError
from peftkit.method import METHODS, TUNED_WIDTH, expand
from peftkit.models.load import load
from peftkit.quantization.quantizer import formats
from peftkit.recipe import ModelSection, QuantizationSection

TRIALS = Path(__file__).resolve().parents[2] / "docs" / "results" / "tuning.csv"


@pytest.fixture(scope="module")
def found():
    """Return (loss, rate) of every trial, by method."""
    with TRIALS.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "bundled/tiny"]
    return {
        name: [(float(r["validation_loss"]), float(r["learning_rate"])) for r in rows if r["method"] == name]
        for name in dict.fromkeys(row["method"] for row in rows)
        if METHODS[name].rate_searched
    }


def test_every_method_was_searched_with_as_many_trials_or_says_that_its_rate_is_taken_over(found):
    def model(needs):
        section = None if needs is None else QuantizationSection(format=formats(needs)[0])
        return load(ModelSection(name="bundled/tiny"), device="meta", weights=False, quantization=section).model

    suitable = set()
    for name, cls in METHODS.items():
        try:
            check_methods(model(cls.needs), [cls.from_options({})])
        except PeftkitError:
            continue
        if cls.rate_searched:
            suitable.add(name)
    assert set(found) == suitable
    assert {len(trials) for trials in found.values()} == {6}
    assert all(len({rate for _, rate in trials}) == 6 for trials in found.values())


def test_each_default_is_the_rate_with_the_lowest_loss(found):
    for name, trials in found.items():
        (_, best) = min(trials)
        rates = {part.rate(TUNED_WIDTH) for part in expand([METHODS[name].from_options({})])}
        assert rates == {best}, name


def test_a_rate_was_searched_between_others(found):
    for name, trials in found.items():
        best = min(trials)[1]
        rates = sorted(rate for _, rate in trials)
        assert rates[0] < best < rates[-1], f"{name}: the best rate {best} is at the end of those tried"
