"""Predictions and references in files: JSON, JSON lines, or plain text as the official E2E script reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit import files
from peftkit.errors import PeftkitError, unknown

FIELDS = ("id", "prompt", "prediction", "references", "finished")
"""What an object in a file of texts may have: what `peft eval` writes."""


def read_predictions(path: Path) -> list[str]:
    """Read one text per input.

    `.json`: a list of texts; `.jsonl`: a text, or an object with a `prediction`, a line; any other name: one text a
    line, an empty line being an empty text. Raises PeftkitError, naming the line, for other content and an empty file.
    """
    if path.suffix not in (".json", ".jsonl"):
        return [line.strip() for line in lines(path)]
    return [text(entry, path, number) for number, entry in entries(path, "prediction")]


def read_references(path: Path) -> list[list[str]]:
    """Read one or more texts per input.

    `.json`: a list of lists of texts (or of texts, one per input); `.jsonl`: one of those, or an object with
    `references`, a line; any other name: one text a line, inputs separated by an empty line. Raises PeftkitError as
    `read_predictions` does.
    """
    if path.suffix not in (".json", ".jsonl"):
        return blocks(path)
    groups = []
    for number, entry in entries(path, "references"):
        group = entry if isinstance(entry, list) else [entry]
        if not group:
            raise PeftkitError(f"{path}, entry {number}: an empty list of references, and at least one is wanted.")
        groups.append([text(reference, path, number) for reference in group])
    return groups


def lines(path: Path) -> list[str]:
    """Return the lines of a text file that is not empty, without their ends."""
    content = files.read_text(path)
    if not content.strip():
        raise PeftkitError(f"{path} is empty: there is nothing to score.")
    return [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]


def blocks(path: Path) -> list[list[str]]:
    """Return the lines of each block between empty lines."""
    groups: list[list[str]] = [[]]
    for line in lines(path):
        if line.strip():
            groups[-1].append(line.strip())
        elif groups[-1]:
            groups.append([])
    return [group for group in groups if group]


def entries(path: Path, key: str) -> Iterator[tuple[int, Any]]:
    """Iterate over (number from 1, entry) of a JSON list or of JSON lines; of an object, what it has at `key`."""
    if path.suffix == ".jsonl":
        listed = [
            files.parse_json(line, f"{path}, line {number}")
            for number, line in enumerate(lines(path), 1)
            if line.strip()
        ]
    else:
        listed = files.read_json(path)
    if not isinstance(listed, list) or not listed:
        raise PeftkitError(f"{path}: a JSON list with at least one entry is wanted, and this is {describe(listed)}.")
    for number, entry in enumerate(listed, 1):
        if isinstance(entry, dict):
            place = f"{path}, entry {number}"
            known(entry, FIELDS, place)
            if key not in entry:
                raise PeftkitError(f"{place}: no key '{key}'; found: {', '.join(map(str, entry)) or 'none'}.")
            entry = entry[key]
        yield number, entry


def known(entry: Mapping[str, Any], fields: Sequence[str], place: str) -> None:
    """Raise PeftkitError where an object has a field that is none of `fields`."""
    other = next((field for field in entry if field not in fields), None)
    if other is not None:
        raise PeftkitError(f"{place}: {unknown('field', other, fields)}")


def text(entry: Any, path: Path, number: int) -> str:
    """Return `entry` if it is a text, without the white space at its ends."""
    if not isinstance(entry, str):
        raise PeftkitError(f"{path}, entry {number}: a text is wanted, and this is {describe(entry)}.")
    return entry.strip()


def describe(value: Any) -> str:
    """Name the JSON type of `value`, with its size where that tells something."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case dict():
            return "an object"
        case list():
            return f"a list of {len(value)}"
        case str():
            return "a text"
        case _:
            return "a number"
