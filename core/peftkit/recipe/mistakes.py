"""Collect the mistakes of a recipe, each with the file and line where it stands, to tell them all at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from peftkit.errors import PeftkitError, nearest

SHOWN = 20
"""Mistakes told in full; of the others only their number."""


class Place(NamedTuple):
    """Where a value was written: a file and its line, or an override."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


class Mistakes:
    """What is wrong in a recipe, in the order of files and lines."""

    def __init__(self) -> None:
        self._mistakes: list[tuple[Place, str]] = []
        self._keys: list[str] = []
        self.final = False

    def add(self, place: Place, key: str, message: str, *, final: bool = False) -> None:
        """Note a mistake at `key` (dotted; empty: the whole file); after a `final` one nothing else can be judged."""
        self._mistakes.append((place, f"{place}: {key}: {message}" if key else f"{place}: {message}"))
        self._keys.append(key)
        self.final |= final

    def has(self, key: str) -> bool:
        """Say whether a mistake is known at `key` or below it."""
        return any(f"{known}.".startswith(f"{key}.") for known in self._keys)

    def check(self) -> None:
        """Raise one PeftkitError that tells every mistake, or return where there is none."""
        if not self._mistakes:
            return
        sources = list(dict.fromkeys(place.source for place, _ in self._mistakes))
        ordered = sorted(self._mistakes, key=lambda mistake: (sources.index(mistake[0].source), mistake[0].line))
        lines = list(dict.fromkeys(text for _, text in ordered))
        if len(lines) > SHOWN:
            lines[SHOWN:] = [f"and {len(lines) - SHOWN} more"]
        raise PeftkitError("\n".join(lines))


def suggest(name: str, choices: Iterable[str]) -> str:
    """Say which of `choices` are allowed, and which is spelt most like `name`."""
    allowed = list(choices)
    guess = nearest(name, allowed)
    return f"allowed: {', '.join(allowed) or 'none'}" + (f"; did you mean '{guess}'?" if guess else "")
