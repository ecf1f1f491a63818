"""What a comparison came to, as its tables and pictures take it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spread:
    """The mean of a figure over seeds, with its sample standard deviation where there are several."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum values up."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class ComparedEntry:
    """One entry's figures; `reason` says why there are none, or not of every seed."""

    label: str
    note: str = ""
    trainable: int | None = None
    """Trainable parameters."""
    stored: int | None = None
    """Numbers in the saved adapter."""
    scores: dict[str, Spread] = field(default_factory=dict)
    validation: Spread | None = None
    """Loss on the validation split, nats per trained token."""
    step_s: float | None = None
    """Seconds of an optimizer step, the median over steps and seeds."""
    memory: int | None = None
    """Bytes at the peak of training, the largest of the seeds."""
    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    """The training loss of each of `steps`, the mean over seeds."""
    reason: str | None = None


@dataclass(frozen=True)
class Comparison:
    """The untrained base, then the entries from the best headline score down, then what has none."""

    title: str
    setup: dict[str, str]
    """What is the same for all entries, by name."""
    headline: str
    """The score that orders the entries."""
    base: ComparedEntry
    entries: tuple[ComparedEntry, ...]
    reference: str
    """The label of the entry that step times and memory are ratios to."""

    @property
    def measured(self) -> list[ComparedEntry]:
        """The entries with figures."""
        return [entry for entry in self.entries if entry.scores]
