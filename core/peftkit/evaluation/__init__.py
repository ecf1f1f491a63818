"""Generating for every input of a split and scoring it: a run, its base model, or any loaded model."""

from __future__ import annotations

from peftkit.evaluation.answers import Evaluation, check_examples, evaluate_loaded, settings_for
from peftkit.evaluation.runs import answer, answers, evaluate, merges_exactly, prepare

__all__ = [
    "Evaluation",
    "answer",
    "answers",
    "check_examples",
    "evaluate",
    "evaluate_loaded",
    "merges_exactly",
    "prepare",
    "settings_for",
]
