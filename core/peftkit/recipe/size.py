"""Sizes of memory as recipes write them: a number and a unit."""

from __future__ import annotations

import re
from typing import Any

from peftkit.errors import nearest

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
AUTO = "auto"
FORMS = "auto, or a size such as 6GB, 800MB or 7.5GiB"
_WRITTEN = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(UNITS)})")


def size_in_bytes(text: str) -> int:
    """Return the bytes of a size such as `6GB` (powers of 1000) or `7.5GiB` (of 1024).

    Raises ValueError for another form, and for a size of nothing.
    """
    written = _WRITTEN.fullmatch(text)
    size = int(float(written[1]) * UNITS[written[2]]) if written else 0
    if size < 1:
        hint = f"; did you mean '{AUTO}'?" if nearest(text, [AUTO]) else ""
        raise ValueError(f"found {text[:60]!r} (text); allowed: {FORMS}{hint}")
    return size


def check_memory(value: Any) -> Any:
    """Return the value if it is `auto`, a size or None; raises ValueError for anything else."""
    if isinstance(value, str) and value != AUTO:
        size_in_bytes(value)
    elif value is not None and value != AUTO:
        raise ValueError(f"found {value!r}; allowed: {FORMS}")
    return value
