"""Numbers as people read them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"


def count(number: float) -> str:
    """Write a count with three significant digits: 950, 12.3k, 4.56M, 7.24B."""
    return scaled(number, ("", "k", "M", "B"))


def size(number: float) -> str:
    """Write a number of bytes: 512 B, 12.3 MB, 4.56 GB (powers of 1000)."""
    return scaled(number, (" B", " kB", " MB", " GB"))


def known_size(number: float | None) -> str:
    """Write a number of bytes, or that it is unknown."""
    return "unknown" if number is None else size(number)


def scaled(number: float, units: Sequence[str]) -> str:
    """Write `number` in the largest of `units`, each a thousand times the one before, that leaves it at least 1."""
    for unit in units[:-1]:
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}{units[-1]}" if number < 999.5 else f"{number:,.0f}{units[-1]}"


def duration(seconds: float) -> str:
    """Write a time: 8 s, 1:23, 2:05:09."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Draw values as at most `width` bars between their smallest and largest; a bar is the mean of its share."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return ""
    columns = min(width, len(finite))
    edges = [position * len(finite) // columns for position in range(columns + 1)]
    means = [sum(finite[start:end]) / (end - start) for start, end in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(BARS[round((mean - low) / span * (len(BARS) - 1))] for mean in means)


def histogram(values: Sequence[int], lines: int = 12, width: int = 40) -> list[str]:
    """Draw whole numbers as at most `lines` lines of bars, a line for each range of one size, with its count."""
    low, high = min(values), max(values)
    step = _round_up((high - low + 1) / lines)
    first = low // step * step
    counts = [0] * ((high - first) // step + 1)
    for value in values:
        counts[(value - first) // step] += 1
    ranges = [
        f"{first + at * step:,}" + (f"–{first + (at + 1) * step - 1:,}" if step > 1 else "")
        for at in range(len(counts))
    ]
    margin, most = max(map(len, ranges)), max(counts)
    bars = [BARS[-1] * math.ceil(width * count / most) for count in counts]
    return [
        f"{name:>{margin}}  {bar}{' ' if bar else ''}{count:,}"
        for name, bar, count in zip(ranges, bars, counts, strict=True)
    ]


def _round_up(step: float) -> int:
    """Return the next of 1, 2, 5, 10, 20, 50, …"""
    unit = 1
    while True:
        for digit in (1, 2, 5):
            if digit * unit >= step:
                return digit * unit
        unit *= 10
