"""Files of a person's own whose entries a recipe may name: methods, objectives, metrics, tasks, loggers and the rest.

A file is written as one in the package is: it imports the base of a kind, and what it defines registers itself. It runs
once in a process, and again after it has changed, in place of what it was.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from peftkit import consent
from peftkit.errors import PeftkitError
from peftkit.registry import Registry, recording


@dataclass(frozen=True)
class Plugin:
    """A file that has run."""

    sha256: str
    entries: tuple[tuple[Registry[Any], str], ...]
    """What it has registered: where, under which name."""


_ran: dict[Path, Plugin] = {}


def run(file: Path, *, agreed: bool = True) -> Plugin:
    """Run a plugin file, which registers its entries, and return it; one that has run already is as it was.

    Whoever names a file in a recipe of their own has agreed to its code, and that is kept; without `agreed` someone on
    this machine must have. Raises PeftkitError for a file that cannot be read, code that nobody has agreed to, an error
    in the code, and a name that is taken; nothing is registered then.
    """
    path = file.resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise PeftkitError(f"{file} cannot be read: {error.strerror}. Name a Python file.") from None
    digest = hashlib.sha256(source).hexdigest()
    earlier = _ran.get(path)
    if earlier is not None and earlier.sha256 == digest:
        return earlier
    code = {str(path): {"files": {path.name: digest}}}
    if not agreed and not consent.given(code):
        raise PeftkitError(
            f"{file} is a plugin, and nobody on this machine has agreed to run it as it is now. Read it, then give "
            "--trust-remote-code."
        )
    if agreed:
        consent.give(code)
    forget(path)
    _ran[path] = Plugin(digest, _registered(path))
    return _ran[path]


def forget(file: Path) -> None:
    """Take back what a plugin file has registered, where it has run."""
    plugin = _ran.pop(file.resolve(), None)
    for registry, name in plugin.entries if plugin else ():
        registry.drop(name)


def _registered(path: Path) -> tuple[tuple[Registry[Any], str], ...]:
    """Run a file as a module, and return what it has registered."""
    name = f"peftkit_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PeftkitError(f"{path} is not a Python file: its name has to end in .py.")
    module = util.module_from_spec(spec)
    # Dataclasses find the types of their fields through the module.
    sys.modules[name] = module
    try:
        with recording() as entries:
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PeftkitError(_told(path, error)) from error
    return tuple(entries)


def _told(path: Path, error: Exception) -> str:
    """Say what went wrong in a plugin, and at which of its lines."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else (lines or [None])[-1]
    place = str(path) if line is None else f"{path}:{line}"
    return f"the plugin {place} ends with {type(error).__name__}: {str(error) or 'without a message'}"
