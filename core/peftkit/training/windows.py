"""Which micro-batches make up each optimizer step, and how many steps a run has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from peftkit.data.batches import Batches


class Position(NamedTuple):
    """Where in the data a run stands: the next micro-batch to read, counted from 0, of an epoch counted from 0."""

    epoch: int = 0
    batch: int = 0


class Window(NamedTuple):
    """The micro-batches of one optimizer step, where the data stands after them, and the epochs done by then."""

    batches: list[list[int]]
    after: Position
    epochs: float


def windows(batches: Batches, accumulation: int, start: Position) -> Iterator[Window]:
    """Yield windows of `accumulation` micro-batches for ever; an epoch's last window may be shorter."""
    epoch, first = start
    while True:
        plan = batches.plan(epoch)
        for begin in range(first, len(plan), accumulation):
            end = min(begin + accumulation, len(plan))
            after = Position(epoch, end) if end < len(plan) else Position(epoch + 1, 0)
            yield Window(plan[begin:end], after, epoch + end / len(plan))
        epoch, first = epoch + 1, 0


PLANNED = 100
"""Epochs whose batches are counted one by one; later ones count as their average."""


def steps_of(plan: Sequence[list[int]], accumulation: int, factor: float = 1.0) -> int:
    """Count the optimizer steps of an epoch that has `factor` times the micro-batches of a plan."""
    return math.ceil(len(plan) * factor / accumulation)


def count_steps(
    batches: Batches, accumulation: int, epochs: float | None, max_steps: int | None, factor: float = 1.0
) -> int:
    """Count the optimizer steps of a run that ends at `epochs` (fractions count) or `max_steps`, whichever is first.

    An epoch has `factor` times the micro-batches that are there.
    """
    if epochs is None and max_steps is not None:
        return max_steps
    wanted, steps = 3.0 if epochs is None else epochs, 0
    for epoch in range(min(PLANNED, math.ceil(wanted))):
        steps += math.ceil(min(1.0, wanted - epoch) * steps_of(batches.plan(epoch), accumulation, factor))
        if max_steps is not None and steps >= max_steps:
            return max_steps
    if wanted > PLANNED:
        steps = math.ceil(steps * wanted / PLANNED)
    return steps if max_steps is None else min(steps, max_steps)
