"""Metrics of labels and numbers, on values computed by hand and by scipy."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from peftkit.errors import PeftkitError
from peftkit.metrics import METRICS, UnavailableError
from peftkit.metrics.f1 import binary

EXACT = 1e-12
LABELS = list("0011101010")
GIVEN = list("0111001011")
"""Of ten: tp 4, fp 2, fn 1, tn 3."""


def score(name: str, predictions: list[str], labels: list[str]) -> float:
    (figure,) = METRICS[name].score(predictions, [[label] for label in labels]).values()
    return figure


def test_two_classes_by_hand():
    assert score("accuracy", GIVEN, LABELS) == pytest.approx(0.7, abs=EXACT)
    assert score("f1", GIVEN, LABELS) == pytest.approx(8 / 11, abs=EXACT)
    assert score("f1_macro", GIVEN, LABELS) == pytest.approx((8 / 11 + 6 / 9) / 2, abs=EXACT)
    assert score("matthews", GIVEN, LABELS) == pytest.approx((4 * 3 - 2 * 1) / math.sqrt(6 * 5 * 5 * 4), abs=EXACT)


def test_three_classes_by_hand():
    """The confusion matrix, labels by predictions, is 2 1 0 / 0 1 1 / 1 0 2."""
    labels, given = list("aaabbccc"), list("aabbcacc")
    assert score("accuracy", given, labels) == pytest.approx(5 / 8, abs=EXACT)
    assert score("f1_macro", given, labels) == pytest.approx((4 / 6 + 2 / 4 + 4 / 6) / 3, abs=EXACT)
    shared, spreads = 5 * 8 - (3 * 3 + 2 * 2 + 3 * 3), (64 - 22) * (64 - 22)
    assert score("matthews", given, labels) == pytest.approx(shared / math.sqrt(spreads), abs=EXACT)


def test_the_multiclass_form_is_the_correlation_of_two_classes():
    draws = random.Random(3)
    labels, given = ([draws.choice("01") for _ in range(50)] for _ in range(2))
    phi = stats.pearsonr([int(x) for x in given], [int(x) for x in labels]).statistic
    assert score("matthews", given, labels) == pytest.approx(phi, abs=EXACT)


@pytest.mark.parametrize(
    ("predictions", "labels", "f1", "macro", "matthews"),
    [
        # As scikit-learn has them: zero where nothing is positive, the mean over labels that are there or predicted.
        ("0000", "0000", 0.0, 1.0, 0.0),
        ("1111", "1111", 1.0, 1.0, 0.0),
        ("0000", "0101", 0.0, (4 / 6 + 0.0) / 2, 0.0),
        ("0101", "0000", 0.0, (4 / 6 + 0.0) / 2, 0.0),
        ("1010", "0101", 0.0, 0.0, -1.0),
    ],
)
def test_one_class_alone_and_constant_predictions(
    predictions: str, labels: str, f1: float, macro: float, matthews: float
):
    given = list(predictions), list(labels)
    assert score("f1", *given) == pytest.approx(f1, abs=EXACT)
    assert score("f1_macro", *given) == pytest.approx(macro, abs=EXACT)
    assert score("matthews", *given) == pytest.approx(matthews, abs=EXACT)


def test_the_positive_label_is_1_or_the_later_one():
    assert score("f1", ["yes", "no", "no"], ["yes", "yes", "no"]) == pytest.approx(2 / 3, abs=EXACT)
    assert binary(["yes", "no", "no"], ["yes", "yes", "no"], "no") == pytest.approx(2 / 3, abs=EXACT)
    with pytest.raises(PeftkitError, match=r"f1: the labels are a, b, c, .*`f1_macro`"):
        score("f1", ["a", "b", "c"], ["a", "b", "b"])


@pytest.mark.parametrize(("name", "official"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_correlations_equal_those_of_scipy(name: str, official):
    draws = random.Random(1)
    x = [round(draws.gauss(0, 2), 1) for _ in range(60)]
    y = [round(value + draws.gauss(0, 1)) for value in x]
    assert len(set(y)) < len(y), "ranks are shared"
    wanted = official(x, y).statistic
    assert score(name, [str(value) for value in x], [str(value) for value in y]) == pytest.approx(wanted, abs=EXACT)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_correlation_with_a_constant_is_not_defined(name: str):
    """scipy gives nan there, which no report can hold."""
    with pytest.raises(UnavailableError, match=f"{name} is not defined"):
        score(name, ["1", "1", "1"], ["1", "2", "3"])
    with pytest.raises(PeftkitError, match=f"{name}: predictions and references are numbers"):
        score(name, ["one", "2"], ["1", "2"])


def test_spearman_by_hand():
    """Ranks 1 2.5 2.5 4 and 1 3 2 4: the covariance is 4.5, the variances 4.5 and 5."""
    assert score("spearman", ["1", "2", "2", "3"], ["1", "3", "2", "9"]) == pytest.approx(
        4.5 / math.sqrt(4.5 * 5), abs=EXACT
    )
