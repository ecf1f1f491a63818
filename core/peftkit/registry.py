"""Names to things: each entry registers itself in a file of its package, and nothing else lists it.

Installed packages may bring more: an entry point of the group `peftkit.plugins` names a module that defines entries.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Generic, TypeVar

from peftkit.errors import PeftkitError, unknown

Entry = TypeVar("Entry")
GROUP = "peftkit.plugins"
"""The group of entry points under which installed packages name modules with entries of their own."""


class Registry(Generic[Entry]):
    """The entries of one `kind`; the modules of `package` are imported at the first look-up."""

    _recorded: ClassVar[list[tuple[Registry[Any], str]] | None] = None
    """Where what comes from outside of the package is noted; None while nobody asks."""

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry] = {}
        self._complete = False

    def add(self, name: str, entry: Entry) -> None:
        """Register `entry`; refuses a second entry of the same name."""
        outside = not str(getattr(entry, "__module__", "")).startswith(f"{self.package}.")
        if outside and Registry._recorded is not None:
            # The package's own entries come first, so that a name of theirs is seen to be taken.
            self._load()
        if name in self._entries:
            raise ValueError(f"two {self.kind}s are named '{name}': {self._entries[name]} and {entry}")
        self._entries[name] = entry
        if outside and Registry._recorded is not None:
            Registry._recorded.append((self, name))

    def drop(self, name: str) -> None:
        """Forget an entry; the name is free again."""
        del self._entries[name]

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that registers what it decorates as `name`."""

        def decorate(entry: Entry) -> Entry:
            self.add(name, entry)
            return entry

        return decorate

    def names(self) -> list[str]:
        """List the registered names in alphabetical order."""
        self._load()
        return sorted(self._entries)

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Iterate over (name, entry) in alphabetical order."""
        return ((name, self._entries[name]) for name in self.names())

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __getitem__(self, name: str) -> Entry:
        """Return the entry; an unknown name is a PeftkitError with the nearest spelling."""
        if name not in self._entries:
            self._load()
        if name not in self._entries:
            raise PeftkitError(unknown(self.kind, name, self._entries))
        return self._entries[name]

    def _load(self) -> None:
        if self._complete:
            return
        self._complete = True
        # What the package and installed ones register is not a file's, though it asked for it.
        recorded, Registry._recorded = Registry._recorded, None
        try:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__, self.package + "."):
                importlib.import_module(module.name)
            _import_installed()
        finally:
            Registry._recorded = recorded


@contextmanager
def recording() -> Iterator[list[tuple[Registry[Any], str]]]:
    """Note what is registered from outside of the package meanwhile: where, under which name; an error undoes it."""
    recorded: list[tuple[Registry[Any], str]] = []
    Registry._recorded = recorded
    try:
        yield recorded
    except BaseException:
        for registry, name in recorded:
            registry.drop(name)
        raise
    finally:
        Registry._recorded = None


@cache
def installed() -> tuple[EntryPoint, ...]:
    """Return the modules with entries that installed packages name."""
    return tuple(sorted(entry_points(group=GROUP), key=lambda point: point.name))


@cache
def _import_installed() -> None:
    for point in installed():
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist else point.value
            logging.getLogger("peftkit").warning(
                "the plugin '%s' of the package %s cannot be imported, and what it registers is not there: %s: %s",
                point.name,
                package,
                type(error).__name__,
                error,
            )
