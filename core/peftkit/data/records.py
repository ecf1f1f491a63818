"""Reading the records of data files (CSV, JSON lines, JSON), each fault told with its file and line."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftkit.data.lines import Line, each_line
from peftkit.errors import PeftkitError
from peftkit.files import parse_json

LONGEST_FIELD = 1 << 24
"""Characters of one CSV field; Python's own limit of 131,072 is short for documents."""


def find_file(folder: Path, patterns: Sequence[str]) -> Path:
    """Return the file of `folder` that the first matching pattern names, and say which where there are several.

    Raises PeftkitError with what the folder does hold where nothing matches.
    """
    require_folder(folder, patterns[0])
    for pattern in patterns:
        matches = sorted(path for path in folder.glob(pattern) if path.is_file())
        if matches:
            if len(matches) > 1:
                others = ", ".join(path.name for path in matches[1:])
                logging.getLogger("peftkit").warning("%s: reading %s, not %s.", folder, matches[0].name, others)
            return matches[0]
    raise missing(folder, " or ".join(patterns))


def require_folder(folder: Path, wanted: str) -> None:
    """Raise PeftkitError where `folder` is not a folder."""
    if not folder.exists():
        raise PeftkitError(
            f"the data folder {folder} does not exist; name the one that holds {wanted} in `dataset.path`."
        )
    if not folder.is_dir():
        raise PeftkitError(f"{folder} is a file; name the folder that holds {wanted} in `dataset.path`.")


def missing(folder: Path, wanted: str) -> PeftkitError:
    """Return the error of a folder without the file that is wanted, with what it holds."""
    held = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    listed = ", ".join(held[:12]) + (f" and {len(held) - 12} more" if len(held) > 12 else "")
    return PeftkitError(f"{folder} has no {wanted}; it holds {listed or 'nothing'}.")


def text(value: Any, place: str, key: str, *, empty: bool = False) -> str:
    """Return `value` where it is text, not blank unless `empty`, that UTF-8 can write; else raise PeftkitError."""
    if not isinstance(value, str):
        raise PeftkitError(f"{place}: '{key}' is {kind(value)}, and text is wanted.")
    if not empty and not value.strip():
        raise PeftkitError(f"{place}: '{key}' is empty, and text is wanted.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PeftkitError(f"{place}: '{key}' holds half of a surrogate pair, which is not a character.") from None
    return value


def member(value: Any, place: str, key: str, wanted: type, name: str = "value") -> Any:
    """Return `value[key]` where `value` is an object that has it and it is a `wanted`, else raise PeftkitError."""
    if not isinstance(value, Mapping):
        raise PeftkitError(f"{place}: the {name} is {kind(value)}, and a JSON object with '{key}' is wanted.")
    if key not in value:
        raise PeftkitError(f"{place}: the {name} has no '{key}'; its keys are {keys(value)}.")
    if not isinstance(value[key], wanted) or (wanted is int and isinstance(value[key], bool)):
        raise PeftkitError(f"{place}: '{key}' is {kind(value[key])}, and {NAMES[wanted]} is wanted.")
    return value[key]


NAMES = {
    str: "text",
    list: "a list",
    dict: "an object",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def kind(value: Any) -> str:
    """Name the JSON type of a value."""
    return "null" if value is None else NAMES.get(type(value), type(value).__name__)


def keys(names: Iterable[Any]) -> str:
    """List names that a file has, the first twelve of many."""
    quoted = [shown(name) for name in names]
    return ", ".join(quoted[:12]) + (" …" if len(quoted) > 12 else "") or "none"


def shown(value: Any, length: int = 40) -> str:
    """Return what a file says in a form that an error message can hold: on one line, printable, at most `length`."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(value)[: length + 1])
    return plain if len(plain) <= length else plain[:length] + "…"


def read_csv(path: Path, columns: Sequence[str], *, lower: bool = True) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, record) for each record of a CSV file with a header; the line is where the record starts.

    Quoted fields may hold line breaks. Column names are made `lower` case; other columns than `columns` are kept too.
    """
    csv.field_size_limit(LONGEST_FIELD)
    rows = csv.reader((row.text for row in each_line(path)), strict=True)
    header: list[str] | None = None
    line = 1
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise PeftkitError(
                f"{path}, line {line}: the record that starts here is not valid CSV ({error}): "
                'a field with a comma, a line break or a quote is written in quotes, and a quote inside as "".'
            ) from None
        if row is None:
            break
        start, line = line, rows.line_num + 1
        if not row:
            continue
        if header is None:
            header = [name.strip().lower() if lower else name.strip() for name in row]
            check_apart(header, f"{path}, line {start}")
            absent = [name for name in columns if name not in header]
            if absent:
                raise PeftkitError(
                    f"{path}, line {start}: the header has no column {' and no column '.join(absent)}; "
                    f"it has {keys(row)}."
                )
        elif len(row) != len(header):
            raise PeftkitError(f"{path}, line {start}: {len(row)} fields where the header has {len(header)}.")
        else:
            yield start, dict(zip(header, row, strict=True))
    if header is None:
        wanted = f"the columns {', '.join(columns)}" if columns else "a header"
        raise PeftkitError(f"{path} is empty; a CSV file with {wanted} is wanted.")


def json_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a JSON-lines file that are not blank."""
    return (line for line in each_line(path) if not line.blank)


def parse_line(line: Line) -> dict[str, Any]:
    """Return the object of a line of a JSON-lines file; anything else is a PeftkitError."""
    place = f"{line.path}, line {line.number}"
    value = parse_json(line.text.removesuffix("\n"), place, "; each line is one JSON object")
    if not isinstance(value, dict):
        raise PeftkitError(f"{place}: the line is {kind(value)}, and a JSON object is wanted.")
    return value


def check_apart(names: Sequence[str], place: str) -> None:
    """Refuse a table with two columns of one name, of which only one could be read."""
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise PeftkitError(f"{place}: two columns are called '{shown(twice)}', and only one could be read.")


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, object) for each line of a JSON-lines file; blank lines are passed over."""
    return ((line.number, parse_line(line)) for line in json_lines(path))
