"""Seeded parts of a data set, the smaller inside the larger."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from peftkit.errors import PeftkitError

Item = TypeVar("Item")


def subset(items: Sequence[Item], fraction: float, limit: int | None, seed: int) -> list[Item]:
    """Return the items at the positions that `chosen` returns."""
    return [items[index] for index in chosen(len(items), fraction, limit, seed)]


def chosen(total: int, fraction: float, limit: int | None, seed: int) -> Sequence[int]:
    """Return the first part of a seeded permutation of 0 … total−1, rising: smaller parts lie within larger ones.

    `fraction` (0 to 1) is rounded to the nearest whole number of items, at least one; `limit` is a number of items.
    """
    if not 0 < fraction <= 1:
        raise PeftkitError(f"dataset.fraction is {fraction}; allowed is more than 0 and at most 1.")
    if limit is not None and limit < 1:
        raise PeftkitError(f"dataset.limit is {limit}; allowed is 1 or more.")
    count = min(max(1, round(fraction * total)), limit or total, total)
    return range(total) if count == total else sorted(permutation(total, seed)[:count])


def permutation(count: int, seed: int) -> list[int]:
    """Return 0 … count−1 in an order that follows from `seed` alone, on every machine and version."""
    return sorted(range(count), key=lambda index: hashlib.sha256(f"subset/{seed}/{index}".encode()).digest())
