"""What each part of the engine is worth: step time and memory without it, as ratios to the whole engine's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sides import PARTS

LEAST = 1.03
"""What is worth less than this, in time and in memory, on all work that was measured, is flagged."""


class Measured(Protocol):
    """A side of a cell, as the benchmark of training measures it."""

    size: str
    profile: str
    method: str
    precision: str
    side: str
    slower: float | None
    above: int | None


def show(rows: Sequence[Measured]) -> None:
    """Print a line for each part: the ratios by cell, and whether all are below `LEAST`."""
    work = list(dict.fromkeys(_work(row) for row in rows))
    above = {_work(row): row.above for row in rows if row.side == "ours"}
    print(f"\nWithout a part, step time and memory above the model as ratios to ours: {', '.join(work)}")
    for side, part in PARTS.items():
        pairs = {_work(row): (row.slower, _ratio(row.above, above.get(_work(row)))) for row in rows if row.side == side}
        cells = "".join(f"{_cell(*pairs.get(one, (None, None))):>16}" for one in work)
        ratios = [ratio for pair in pairs.values() for ratio in pair if ratio is not None]
        print(f"{side:<14}{part:<42}{cells}{'  below 3 %' if ratios and max(ratios) < LEAST else ''}", flush=True)


def _work(row: Measured) -> str:
    return f"{row.size} {row.profile} {row.method} {row.precision}"


def _ratio(one: int | None, other: int | None) -> float | None:
    return one / other if one and other else None


def _cell(time: float | None, memory: float | None) -> str:
    return " / ".join("-" if ratio is None else f"{ratio:.3f}" for ratio in (time, memory))
