"""Records of a user's own files, whatever they are written in, with the place of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from peftkit.data.lines import Line
from peftkit.data.records import check_apart, json_lines, keys, kind, parse_line, read_csv
from peftkit.errors import PeftkitError, hint
from peftkit.files import parse_json, read_text


@dataclass(eq=False)
class Record:
    """One record of a file."""

    path: Path
    number: int
    word: str
    """What is numbered in a file of its kind."""
    content: dict[str, Any] | Line
    """A line is parsed when its values are asked for."""

    @cached_property
    def values(self) -> dict[str, Any]:
        """The values by their keys; PeftkitError with the place of what cannot be read."""
        return parse_line(self.content) if isinstance(self.content, Line) else self.content

    @property
    def identity(self) -> str:
        """The file's name and the number of the record or line."""
        return f"{self.path.name}:{self.number}"

    @property
    def place(self) -> str:
        """The same with the whole path, for errors."""
        return f"{self.path}, {self.word} {self.number}"

    def lacks(self, words: re.Pattern[bytes]) -> bool:
        """Say whether it is sure without parsing that no text of it holds one of the `words`, ASCII letters all."""
        line = self.content
        if not isinstance(line, Line) or words.search(line.content):
            return False
        # A letter can be escaped, and a text be in parts.
        return b"\\u00" not in line.content and b'"type"' not in line.content


@dataclass(frozen=True)
class Columns:
    """How the keys of a user's records are read: under other names, or not at all."""

    names: Mapping[str, str] = field(default_factory=dict)
    """For a key that is wanted, the one that the records have."""
    ignored: Sequence[str] = ()

    def of(self, record: Record) -> dict[str, Any]:
        """Return the values of a record under the names that are wanted.

        Raises PeftkitError where the record lacks a named key, or has a wanted name for something else.
        """
        if not self.names and not self.ignored:
            return record.values
        values = {key: value for key, value in record.values.items() if key not in self.ignored}
        for wanted, given in self.names.items():
            if given not in values:
                raise PeftkitError(
                    f"{record.place}: dataset.columns reads '{wanted}' from '{given}', and the keys are "
                    f"{keys(record.values)}.{hint(given, record.values)}"
                )
            if wanted in values and wanted not in self.names.values():
                raise PeftkitError(
                    f"{record.place}: dataset.columns reads '{wanted}' from '{given}', and there is a '{wanted}' too: "
                    f"`dataset.ignore: [{wanted}]` leaves that out."
                )
        rest = {key: value for key, value in values.items() if key not in self.names.values()}
        return rest | {wanted: values[given] for wanted, given in self.names.items()}


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file in one of `SUFFIXES`; PeftkitError with the place of what cannot be read."""
    return (Record(path, number, word, content) for number, word, content in READERS[path.suffix](path))


Numbered = Iterator[tuple[int, str, dict[str, Any] | Line]]


def _json_lines(path: Path) -> Numbered:
    return ((line.number, "line", line) for line in json_lines(path))


def _json(path: Path) -> Numbered:
    records = parse_json(read_text(path), str(path), "; a JSON array of objects is wanted")
    if not isinstance(records, list):
        raise PeftkitError(
            f"{path}: the file is {kind(records)}, and a JSON array of objects is wanted; one object a line is called "
            f"{path.with_suffix('.jsonl').name}."
        )
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise PeftkitError(f"{path}, record {number}: it is {kind(record)}, and a JSON object is wanted.")
        yield number, "record", record


def _csv(path: Path) -> Numbered:
    return ((line, "line", dict(record)) for line, record in read_csv(path, (), lower=False))


def _parquet(path: Path) -> Numbered:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        check_apart(table.schema_arrow.names, str(path))
        batches = table.iter_batches(batch_size=1024)
        rows = (record for batch in batches for record in batch.to_pylist())
        yield from ((number, "row", record) for number, record in enumerate(rows, 1))
    except (pyarrow.ArrowException, OSError) as error:
        raise PeftkitError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from None


READERS: Mapping[str, Callable[[Path], Numbered]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
SUFFIXES = tuple(READERS)
