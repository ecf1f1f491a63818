"""What glibc's heap grows to while tensors come and go: more than they hold, as chunks are not used to the full."""

from __future__ import annotations

import bisect
from collections.abc import Iterable

ALIGNED = 96
"""Bytes by which a free chunk has to be larger than an aligned tensor before glibc (up to 2.37) looks at it: the
alignment and the smallest chunk are asked for beside, and what is left of that is free again."""
MAPPED = 32 << 20
"""Tensors of so many bytes have memory of their own, which goes back to the system at once."""


def heap_peak(events: Iterable[tuple[int, int]]) -> int:
    """Return the most bytes that a heap takes for `events` (number of a memory, its bytes; negative where it is freed).

    Chunks are given out best fit, and free neighbours become one chunk.
    """
    placed: dict[int, tuple[int | None, int]] = {}
    free: list[tuple[int, int]] = []
    top = mapped = peak = 0
    for number, size in events:
        if size < 0:
            start, length = placed.pop(number)
            if start is None:
                mapped -= length
            else:
                _give_back(free, start, length)
        elif size >= MAPPED:
            placed[number] = (None, size)
            mapped += size
        else:
            start = _take(free, size)
            if start is None:
                # The heap grows, from the chunk at its end if that is free.
                start = free.pop()[0] if free and sum(free[-1]) == top else top
                top = start + size
            placed[number] = (start, size)
        peak = max(peak, top + mapped)
    return peak


def _take(free: list[tuple[int, int]], size: int) -> int | None:
    """Take `size` bytes from the smallest chunk that is looked at; return where they begin, None if no chunk is."""
    fit = [(length, place) for place, (_, length) in enumerate(free) if length >= size + ALIGNED]
    if not fit:
        return None
    length, place = min(fit)
    start = free[place][0]
    free[place] = (start + size, length - size)
    return start


def _give_back(free: list[tuple[int, int]], start: int, length: int) -> None:
    """Put a chunk among the free ones, in their order, as one with its free neighbours."""
    place = bisect.bisect(free, (start, length))
    if place < len(free) and free[place][0] == start + length:
        length += free.pop(place)[1]
    if place and sum(free[place - 1]) == start:
        start, length = free[place - 1][0], free[place - 1][1] + length
        place -= 1
        free.pop(place)
    free.insert(place, (start, length))
