"""The log of a run: one JSON record a step, on the disk before the next step begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftkit import files


class Log:
    """Appends records to a `log.jsonl`; `records` holds them all, those of an earlier sitting included."""

    def __init__(self, path: Path, last_step: int = 0):
        """Open `path`, keeping the records up to `last_step` of what is there."""
        self.path = path
        self.records = [record for record in read(path) if record["step"] <= last_step]
        files.write_text(path, "".join(line(record) for record in self.records))
        with files.explained("write", path):
            self._file = path.open("a", encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and flush it."""
        self.records.append(record)
        with files.explained("write", self.path):
            self._file.write(line(record))
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with files.explained("write", self.path):
            self._file.close()


def line(record: dict[str, Any]) -> str:
    """Format a record; numbers keep every bit."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: Path) -> list[dict[str, Any]]:
    """Read the whole records of a log; a last line cut off by a crash is left out, a missing file is an empty log."""
    if not path.exists():
        return []
    lines = files.read_text(path).splitlines(keepends=True)
    return [json.loads(text) for text in lines if text.endswith("}\n")]
