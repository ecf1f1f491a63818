"""How sure a score is: the bootstrap over inputs, and the paired bootstrap between runs on the same inputs.

Efron 1979 (Annals of Statistics 7); paired, Koehn 2004 (W04-3250). A score that is a mean over inputs is resampled from
the figures of single inputs. A corpus score that is a function of sums over inputs is that function of the sums on each
resample, and no text is scored again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache

import torch

from peftkit.errors import PeftkitError
from peftkit.metrics import METRICS, Metric, UnavailableError
from peftkit.report.evidence import Answers

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95


@lru_cache(maxsize=2)
def draws(inputs: int, times: int) -> list[list[int]]:
    """Return `times` resamples of 0 … inputs−1 with replacement, the same every time: runs are compared on them."""
    chance = random.Random(SEED)
    return [[chance.randrange(inputs) for _ in range(inputs)] for _ in range(times)]


def single(metric: Metric, answers: Answers) -> dict[str, list[float]]:
    """Return each key's figure of every input alone; nothing where the metric cannot be computed here."""
    try:
        alone = [metric.score([r["prediction"]], [r["references"]]) for r in answers.predictions]
    except PeftkitError:
        return {}
    return {key: [scores[key] for scores in alone] for key in metric.keys}


def is_same(value: float, score: float) -> bool:
    """Say whether a recomputed figure is the one that was written."""
    return math.isclose(value, score, rel_tol=1e-9, abs_tol=1e-12)


def metric_of(key: str, names: Sequence[str]) -> Metric | None:
    """Return the metric, among those of a task, that has the key."""
    return next((METRICS[name] for name in names if key in METRICS[name].keys), None)


def resample(runs: Sequence[Answers], metric: Metric) -> dict[str, list[list[float]]]:
    """Return, for each key of the metric, the score of every run on each resample, the same ones for as many inputs.

    A key is left out where a run's score is neither the mean of its inputs' figures nor what the metric's sums come to.
    """
    resampled = [summed(metric, run) if metric.terms else means(metric, run) for run in runs]
    return {
        key: [values[key] for values in resampled] for key in metric.keys if all(key in values for values in resampled)
    }


def means(metric: Metric, answers: Answers) -> dict[str, list[float]]:
    """Return the resampled values of each key whose score is the mean of the figures of single inputs."""
    alone = single(metric, answers)
    resampled: dict[str, list[float]] = {}
    for key in (key for key in alone if key in answers.scores):
        inputs = len(alone[key])
        if is_same(math.fsum(alone[key]) / inputs, answers.scores[key]):
            resampled[key] = [value / inputs for (value,) in _sums([(value,) for value in alone[key]], RESAMPLES)]
    return resampled


def summed(metric: Metric, answers: Answers) -> dict[str, list[float]]:
    """Return the resampled values of a metric that is a function of sums over inputs; nothing where it cannot be used.

    What a row holds of the whole set stays as it is on all inputs: how much an n-gram tells, or how rare it is.
    """
    assert metric.terms is not None
    assert metric.total is not None
    records = answers.predictions
    try:
        terms = metric.terms([r["prediction"] for r in records], [r["references"] for r in records])
        whole = metric.total([math.fsum(column) for column in zip(*terms, strict=True)])
        keys = [key for key in metric.keys if key in answers.scores and is_same(whole[key], answers.scores[key])]
        totals = [metric.total(sums) for sums in _sums(terms, RESAMPLES)] if keys else []
    except UnavailableError:
        return {}
    return {key: [total[key] for total in totals] for key in keys}


def _sums(terms: Sequence[Sequence[float]], times: int) -> list[list[float]]:
    """Return the sums of the terms over the inputs of each resample."""
    columns = torch.tensor(terms, dtype=torch.float64)
    return [columns[drawn].sum(dim=0).tolist() for drawn in draws(len(terms), times)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the percentiles between which LEVEL of the resampled values lie."""
    ordered = sorted(values)
    tail = (1 - LEVEL) / 2
    return ordered[round(tail * (len(ordered) - 1))], ordered[round((1 - tail) * (len(ordered) - 1))]


def significance(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the two-sided p-value of the paired bootstrap: how often the difference does not have its sign."""
    differences = [a - b for a, b in zip(one, other, strict=True)]
    against = min(sum(d <= 0 for d in differences), sum(d >= 0 for d in differences))
    return min(1.0, 2 * (1 + against) / (1 + len(differences)))
