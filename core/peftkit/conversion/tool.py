"""A tool whose configurations are translated, and a configuration as it is translated key by key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from peftkit.errors import PeftkitError
from peftkit.registry import Registry

EMPTY: tuple[Any, ...] = (None, False, "", [], {})
"""Values that switch nothing on: a key with one of them needs no counterpart."""


class Config:
    """The keys of a configuration; what was not taken in the end has no counterpart."""

    def __init__(self, place: str, values: Mapping[str, Any]):
        self.place = place
        self._left = dict(values)
        self.notes: list[str] = []
        """What is told of keys that were taken, and computes something else, or asks for a person's hand."""

    def take(self, key: str, default: Any = None) -> Any:
        """Return the value of a key and count it as translated; `default` where it is not there or null."""
        value = self._left.pop(key, None)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> Any:
        """Return a number as `take` does; PeftkitError for any other value."""
        value = self.take(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise PeftkitError(f"{self.place}: {key}: found {value!r}; allowed: a number.")
        return value

    def choose(self, key: str, allowed: Mapping[str, str], default: str | None = None) -> str | None:
        """Return what a word is called here; a word without counterpart is told, and is None."""
        value = self.take(key, default)
        if value is None:
            return None
        if str(value) not in allowed:
            self.notes.append(f"{key}: {value!r} has no counterpart; translated are: {', '.join(allowed)}")
            return None
        return allowed[str(value)]

    def drop(self, keys: Collection[str]) -> None:
        """Leave out keys that say nothing of what is computed."""
        for key in keys:
            self._left.pop(key, None)

    def told(self) -> list[str]:
        """Return a line for each note, then for each key without counterpart."""
        left = {
            key: value for key, value in self._left.items() if value not in EMPTY or (value == 0 and value is not False)
        }
        return [*self.notes, *(f"{key}: {value!r} has no counterpart" for key, value in left.items())]


class Tool:
    """Translates the configurations of one tool."""

    name: ClassVar[str]
    markers: ClassVar[frozenset[str]]
    """Keys that no other tool has: one of them tells whose a configuration is."""

    def recipe(self, config: Config) -> dict[str, Any]:
        """Return the keys of a recipe; PeftkitError for a configuration that no recipe can follow."""
        raise TypeError(f"{type(self).__name__} does not define what it translates")


TOOLS: Registry[Tool] = Registry("tool", "peftkit.conversion.readers")
