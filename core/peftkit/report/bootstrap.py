"""How sure a score is: the bootstrap over inputs, and the paired bootstrap between runs on the same inputs.

Efron 1979 (Annals of Statistics 7); paired, Koehn 2004 (W04-3250). A score that is a mean over inputs is resampled from
the figures of single inputs. Any other (a corpus score) is computed anew on each resample.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from peftkit.errors import PeftkitError
from peftkit.metrics import METRICS, Metric
from peftkit.report.evidence import Answers

MEANS, CORPUS = 2000, 200
"""Resamples of a score that is a mean, and of one that has to be computed anew."""
SEED = 0
LEVEL = 0.95


def draws(inputs: int, times: int) -> list[list[int]]:
    """Return `times` resamples of 0 … inputs−1 with replacement, the same every time: runs are compared on them."""
    chance = random.Random(SEED)
    return [[chance.randrange(inputs) for _ in range(inputs)] for _ in range(times)]


def single(metric: Metric, answers: Answers) -> dict[str, list[float]]:
    """Return each key's figure of every input alone; nothing where the metric cannot be computed here."""
    try:
        found = [metric.score([r["prediction"]], [r["references"]]) for r in answers.predictions]
    except PeftkitError:
        return {}
    return {key: [scores[key] for scores in found] for key in metric.keys}


def is_mean(values: Sequence[float], score: float) -> bool:
    """Say whether a score is the mean of the figures of single inputs."""
    return math.isclose(math.fsum(values) / len(values), score, rel_tol=1e-9, abs_tol=1e-12)


def metric_of(key: str, names: Sequence[str]) -> Metric | None:
    """Return the metric, among those of a task, that has the key."""
    return next((METRICS[name] for name in names if key in METRICS[name].keys), None)


def resample(runs: Sequence[Answers], metric: Metric, anew: str) -> dict[str, list[list[float]]]:
    """Return, for each key of the metric, the score of every run on each resample, the same ones for as many inputs.

    A key that is no mean in one of the runs is left out, unless it is `anew`, which is then computed anew.
    """
    alone = [single(metric, run) for run in runs]
    found: dict[str, list[list[float]]] = {}
    for key in metric.keys:
        if not all(key in run.scores and key in values for run, values in zip(runs, alone, strict=True)):
            continue
        if all(is_mean(values[key], run.scores[key]) for run, values in zip(runs, alone, strict=True)):
            found[key] = [_resampled_means(values[key]) for values in alone]
        elif key == anew:
            found[key] = [_resampled_corpus(metric, key, run) for run in runs]
    return found


def _resampled_means(values: Sequence[float]) -> list[float]:
    return [math.fsum(values[index] for index in drawn) / len(values) for drawn in draws(len(values), MEANS)]


def _resampled_corpus(metric: Metric, key: str, answers: Answers) -> list[float]:
    predictions = [record["prediction"] for record in answers.predictions]
    references = [record["references"] for record in answers.predictions]
    return [
        metric.score([predictions[index] for index in drawn], [references[index] for index in drawn])[key]
        for drawn in draws(len(predictions), CORPUS)
    ]


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
