"""Every metric alone from Python, and as a module of the library evaluate, with the network shut."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import evaluate
import pytest

from peftkit.errors import PeftkitError
from peftkit.metrics import METRICS, UnavailableError, module

PREDICTIONS = ["so it is 7\n#### 7", "the answer is 3"]
REFERENCES = [["true #### 7", "true, it is 7 #### 7"], ["that makes 3, true\n#### 3"]]
NUMBERS = ["1", "0"], [["1", "0"], ["0"]]
"""Texts for the metrics that want two labels, or numbers."""
NUMERIC = ("f1", "pearson", "spearman")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", sorted(set(METRICS.names()) - {"meteor"}))
def test_a_module_gives_the_figures_of_the_metric(name):
    metric = module(name)
    assert isinstance(metric, evaluate.EvaluationModule)
    predictions, references = NUMBERS if name in NUMERIC else (PREDICTIONS, REFERENCES)
    figures = METRICS[name].score(predictions, references)
    assert metric.compute(predictions=predictions, references=references) == figures
    for prediction, group in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, references=group)
    assert metric.compute() == figures
    first = [group[0] for group in references]
    expected = METRICS[name].score(predictions, [[text] for text in first])
    assert module(name).compute(predictions=predictions, references=first) == expected


def test_modules_combine_and_name_themselves():
    both = evaluate.combine([module("bleu"), module("rouge_l")])
    figures = both.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert set(METRICS["bleu"].keys) | {"ROUGE-L"} == set(figures)
    assert "cumulative BLEU-1 to BLEU-4" in module("bleu").description
    assert module("coco_bleu").name == "coco_bleu"


def test_the_module_of_a_metric_that_cannot_run_says_why():
    with pytest.raises(UnavailableError, match="is off"):
        module("meteor").compute(predictions=["a"], references=[["a"]])


def test_an_unknown_metric_is_told_with_the_nearest_name():
    with pytest.raises(PeftkitError, match="Did you mean 'bleu'"):
        module("blue")


def test_no_folder_is_made(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a folder was made")

    monkeypatch.setattr(os, "makedirs", refuse)
    assert module("bleu").compute(predictions=["a"], references=[["a"]])["BLEU-1"] == 1


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    exec(example, {})
    assert "'BLEU-4'" in capsys.readouterr().out
