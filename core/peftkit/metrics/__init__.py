"""Scores of generated text: one file a metric, each equal to the official scorer of its task."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from peftkit.errors import PeftkitError
from peftkit.registry import Registry

if TYPE_CHECKING:
    from evaluate import EvaluationModule

Compute = Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, float]]
Terms = Callable[[Sequence[str], Sequence[Sequence[str]]], list[tuple[float, ...]]]
"""Returns the terms of each input, all of the same number."""
Total = Callable[[Sequence[float]], dict[str, float]]
"""Returns each key's figure from the sums of the terms over inputs."""


@dataclass(frozen=True)
class Metric:
    """One scorer: a prediction per input against one or more references per input."""

    name: str
    keys: tuple[str, ...]
    """The names of the figures, as printed."""
    compute: Compute = field(repr=False)
    terms: Terms | None = field(default=None, repr=False)
    """Of a metric that is a function of sums over inputs, what is summed; what an input's terms hold of the whole set,
    such as how rare an n-gram is, is taken from the references that are given. None of any other metric."""
    total: Total | None = field(default=None, repr=False)
    """What the sums of `terms` come to; None where there are no terms."""

    def score(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """Return each key's figure for the whole set.

        Raises PeftkitError for an empty set, different lengths, an input without references, or what is not text, and
        UnavailableError where the metric needs something that this machine does not have.
        """
        check(self.name, predictions, references)
        return self.compute(predictions, references)


class UnavailableError(PeftkitError):
    """A metric that cannot be computed here or of this, and the reason; no other figure stands in for it."""


class Scores(dict[str, float]):
    """The figures of several metrics by key."""

    def __init__(self) -> None:
        super().__init__()
        self.unavailable: dict[str, str] = {}
        """For each key without a figure, the reason."""


METRICS: Registry[Metric] = Registry("metric", __name__)


def metric(name: str, *keys: str) -> Callable[[Compute], Compute]:
    """Register the decorated function as the metric `name`, which returns `keys`."""

    def decorate(compute: Compute) -> Compute:
        METRICS.add(name, Metric(name, keys, compute))
        return compute

    return decorate


def summed(name: str, *keys: str, total: Total) -> Callable[[Terms], Terms]:
    """Register the decorated function, which returns the terms of each input, as the metric `name` of their sums.

    Such a score can be resampled without scoring a text again.
    """

    def decorate(terms: Terms) -> Terms:
        @functools.wraps(terms)
        def compute(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
            return total([math.fsum(column) for column in zip(*terms(predictions, references), strict=True)])

        compute.__doc__ = total.__doc__
        METRICS.add(name, Metric(name, keys, compute, terms, total))
        return terms

    return decorate


def module(name: str) -> EvaluationModule:
    """Return the metric `name` behind the interface of the library `evaluate`; nothing is downloaded.

    `module("bleu").compute(predictions=[text, …], references=[[text, …], …])` returns the figures by key. One text may
    stand in place of a list of references.
    """
    from peftkit.metrics.interface import build

    return build(METRICS[name])


def score(names: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Score with each of the metrics `names`; one that cannot be computed here leaves its keys out and says why."""
    scores = Scores()
    for name in names:
        try:
            scores |= METRICS[name].score(predictions, references)
        except UnavailableError as error:
            scores.unavailable |= dict.fromkeys(METRICS[name].keys, str(error))
    return scores


def check(name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise PeftkitError unless there is one text and at least one reference for every input."""
    if len(predictions) != len(references):
        raise PeftkitError(
            f"{name}: {len(predictions)} predictions and references for {len(references)} inputs: "
            "give one prediction for every input, in the same order."
        )
    if not predictions:
        raise PeftkitError(f"{name}: no predictions and no references: there is nothing to score.")
    for number, (prediction, group) in enumerate(zip(predictions, references, strict=True), 1):
        if not isinstance(prediction, str):
            raise PeftkitError(f"{name}: prediction {number} is {type(prediction).__name__}, and a text is wanted.")
        if isinstance(group, str) or not group or not all(isinstance(reference, str) for reference in group):
            raise PeftkitError(f"{name}: the references of input {number} are not a list of at least one text.")
