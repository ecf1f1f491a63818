"""What `make test` holds of a large cross: cases that their names draw, the same ones in every run and process.

The rest of the cross is marked `thorough` and belongs to `make test-all`, or to `make test ONLY=…` for one entry.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import pytest

_run = {"whole": True}


def draw_alone() -> None:
    """Leave out from now on what `make test` does not run: making cases that are not run takes a minute."""
    _run["whole"] = False


def whole() -> bool:
    """Say whether crosses are made whole."""
    return _run["whole"]


def turn(case: str, count: int) -> int:
    """Return a number below `count` that the words of `case` decide."""
    return _number(case) % count


def some(case: str, entries: Sequence[Any], count: int) -> list[Any]:
    """Return `count` of the entries, or all where there are fewer, that the words of `case` decide."""
    return sorted(entries, key=lambda entry: _number(f"{case}/{entry}"))[:count]


EVERY = "PEFTKIT_TESTS_EVERY"
"""The environment variable under which a share is the whole."""


def share(case: str, entries: Sequence[Any], parts: int = 3) -> list[Any]:
    """Return about one in `parts` of the entries, which the words of `case` and of each of them decide."""
    return [entry for entry in entries if EVERY in os.environ or turn(f"{case}/{entry}", parts) == 0]


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def marked(cases: Iterable[Any], held: Iterable[Any]) -> list[Any]:
    """Return the cases as parameters, those that are not `held` by `make test` marked `thorough`.

    A case is a tuple of the values of several parameters, or the value of one.
    """
    kept = list(held)
    if not whole():
        return [case for case in cases if case in kept]
    return [case if case in kept else thorough(*(case if isinstance(case, tuple) else [case])) for case in cases]


def thorough(*values: Any) -> Any:
    """Leave a case of these values to `make test-all`."""
    return pytest.param(*values, marks=pytest.mark.thorough)


def concerns(parameters: Iterable[Any], module: str, entry: str) -> bool:
    """Say whether a test of these parameters in this module is one of a registered entry, by its name."""
    named = entry.replace("-", "_")
    return module.removeprefix("test_") == named or any(_names(value, entry, named) for value in parameters)


def _names(value: Any, entry: str, named: str) -> bool:
    if isinstance(value, str):
        return value in (entry, named) or value.split("/")[-1] in (entry, named, f"{named}.py")
    if isinstance(value, dict):
        return any(_names(key, entry, named) for key in value)
    if isinstance(value, (tuple, list)):
        return any(_names(each, entry, named) for each in value)
    return getattr(value, "stem", None) == named or getattr(value, "name", None) == entry
