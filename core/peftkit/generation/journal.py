"""Answers on the disk as they come, so that an interrupted evaluation goes on where it was."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from peftkit import files, schemas
from peftkit.errors import PeftkitError
from peftkit.schemas import Count, Stored


class ChunkRecord(Stored):
    """A record of answers: of each its index, text, token ids, whether it ended, and whether its prompt was cut."""

    chunk: Count
    wall_s: float
    answers: list[Annotated[tuple[Count, str, list[Count], bool, bool], Field(strict=False)]]


class Journal:
    """A file of JSON lines: a `key` of everything that the answers depend on, then one record for each chunk of them.

    Records under another key are thrown away; so is what follows a line that a crash cut off or that was changed.
    """

    def __init__(self, path: Path, key: str):
        self.path = path
        self.records = [record for record in _read(path, key) if "chunk" in record]
        """What earlier sittings have written."""
        self._first = _line({"key": key})
        files.write_text(path, self._first + "".join(map(_line, self.records)))

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; it is on the disk when this returns.

        Nothing is written where an evaluation under another key has taken the file, or has ended with it.
        """
        with files.explained("write", self.path), suppress(FileNotFoundError), self.path.open("rb+") as file:
            if file.readline() != self._first.encode():
                return
            file.seek(0, os.SEEK_END)
            file.write(_line(record).encode())
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Take the file away."""
        with files.explained("remove", self.path):
            self.path.unlink(missing_ok=True)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _read(path: Path, key: str) -> list[dict[str, Any]]:
    """Return the whole records of a file that has this key, else none."""
    if not path.is_file():
        return []
    with files.explained("read", path):
        lines = path.read_bytes().split(b"\n")[:-1]
    records = []
    try:
        for number, line in enumerate(lines, 1):
            record = schemas.check(dict[str, Any], files.parse_json(line, str(path)), str(path))
            records.append(record if number == 1 else schemas.check(ChunkRecord, record, str(path)))
    except PeftkitError:
        pass
    return records if records and records[0].get("key") == key else []
