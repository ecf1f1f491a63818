"""Consent to the Python code that comes with a model: kept outside of run folders, and bound to the code itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit import consent, files
from peftkit.errors import PeftkitError
from peftkit.models import folder as folders
from peftkit.recipe import ModelSection

MAP = "auto_map"
"""The key under which a model's files name classes of its own."""
ELSEWHERE = "--"
"""What stands between another repository and its class there."""


@dataclass(frozen=True)
class Code:
    """The code that opening a model would run: the SHA-256 of each file, and the classes named, by place."""

    places: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        named = {
            place: ", ".join(its["files"]) or "classes of other repositories" for place, its in self.places.items()
        }
        return "; ".join(f"{which} in {place}" for place, which in named.items())


def code_of(section: ModelSection) -> Code | None:
    """Return the code that comes with a model and its tokenizer; None where there is none, or none is to be run.

    A model of the hub is known by its name, and one on this disk by its folder.
    """
    if not section.trust_remote_code:
        return None
    pending = {name: section.revision if name == section.name else None for name in (section.name, section.tokenizer)}
    places: dict[str, dict[str, Any]] = {}
    named = [(name, revision) for name, revision in pending.items() if name]
    for name, revision in named:
        folder = folders.find(name, revision, weights=False, code=True)
        local = folder.resolve() if files.expanded(name).is_dir() else None
        sources = {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*.py"))
        }
        classes = dict(_classes(folder))
        if sources or classes:
            places[str(local or f"{name}@{revision or 'main'}")] = {"files": sources, "classes": classes}
        others = {text.split(ELSEWHERE)[0] for text in _texts(classes) if ELSEWHERE in text}
        named += [(other, None) for other in sorted(others) if other not in dict(named)]
    return Code(places) if places else None


def _classes(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the name of each description in a folder that names classes, and these."""
    for path in sorted(folder.glob("*.json")):
        if MAP.encode() in path.read_bytes():
            value = files.read_json(path)
            if isinstance(value, dict) and value.get(MAP):
                yield path.name, value[MAP]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def remember(section: ModelSection) -> None:
    """Keep that the code of a model may be run; a state folder that cannot be written is a warning."""
    code = code_of(section)
    if code is not None:
        consent.give(code.places)


def check(section: ModelSection, where: Path) -> None:
    """Raise PeftkitError where `where` would have code run that nobody on this machine has agreed to."""
    code = code_of(section)
    if code is not None and not consent.given(code.places):
        raise PeftkitError(
            f"{where} says model.trust_remote_code: true, and on this machine nobody has trained with that code, as it "
            f"is now, or agreed to it. Opening the run would run {code}. Read it, then give --trust-remote-code."
        )
