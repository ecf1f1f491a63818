"""Names to things: each entry registers itself in a file of its package, and nothing else lists it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from peftkit.errors import PeftkitError, unknown

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """The entries of one `kind`; the modules of `package` are imported at the first look-up."""

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry] = {}
        self._complete = False

    def add(self, name: str, entry: Entry) -> None:
        """Register `entry`; refuses a second entry of the same name."""
        if name in self._entries:
            raise ValueError(f"two {self.kind}s are named '{name}': {self._entries[name]} and {entry}")
        self._entries[name] = entry

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
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, self.package + "."):
            importlib.import_module(module.name)
