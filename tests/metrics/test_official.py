"""Every text metric equals the official scorer on texts of our own; see official/README.md for who scored them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftkit.metrics import METRICS
from peftkit.tasks import TASKS

FOLDER = Path(__file__).resolve().parent / "official"
TEXTS = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))
SCORES = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))
LABELS = ("accuracy", "f1", "f1_macro", "matthews", "pearson", "spearman")
ELSEWHERE = ("gsm8k", "coqa", "meteor", "first_choice", "last_number", *LABELS)
"""Metrics of short answers and of labels, and the one whose program has tests of its own."""


@pytest.mark.parametrize("name", sorted(set(METRICS.names()) - set(ELSEWHERE)))
def test_metrics_equal_the_official_scorers(name):
    for key, value in METRICS[name].score(TEXTS["hypotheses"], TEXTS["references"]).items():
        assert value == pytest.approx(SCORES[key], abs=1e-9), key


@pytest.mark.parametrize("task", ["e2e", "webnlg"])
def test_every_figure_of_the_fixture_is_a_figure_of_the_task(task):
    assert {key for name in TASKS[task].metrics for key in METRICS[name].keys} == set(SCORES)
