"""The log of a run: one JSON record a step, on the disk before the next step begins."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from peftkit import files, lock, schemas
from peftkit.errors import PeftkitError
from peftkit.schemas import Count, Stored


class StepRecord(Stored):
    """What the record of a step has at least."""

    step: Annotated[int, Field(ge=1, lt=2**63)]
    validation_loss: float | None = None
    scores: dict[str, float] = {}


class LossRecord(StepRecord):
    """What a curve is drawn from."""

    loss: float


class WholeStepRecord(LossRecord):
    """What a run adds up at its end; earlier versions did not write what has a default."""

    epoch: float
    tokens: Count
    trained_tokens: Count
    tokens_per_s: Annotated[float, Field(ge=0)]
    memory: Count
    elapsed_s: float
    computed_tokens: Count = 0
    padding_tokens_saved: Count = 0
    shared_tokens_saved: Count = 0


class Log:
    """Appends records to a `log.jsonl`; `records` holds them all, those of an earlier sitting included."""

    def __init__(self, path: Path, records: Sequence[dict[str, Any]] = ()):
        """Write `path` anew with the records of earlier sittings, and open it."""
        self.path, self.records = path, list(records)
        text = "".join(map(line, self.records))
        self._digest = hashlib.sha256(text.encode())
        files.write_text(path, text)
        with files.explained("write", path):
            self._file = path.open("a", encoding="utf-8", newline="\n")
            self._known = os.fstat(self._file.fileno())

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and flush it; PeftkitError where the file is not there any more."""
        text = line(record)
        self.check()
        self.records.append(record)
        self._digest.update(text.encode())
        with files.explained("write", self.path):
            self._file.write(text)
            self._file.flush()

    def check(self) -> None:
        """Raise PeftkitError where the file was removed or another one took its place."""
        if not lock.same(self.path, self._known):
            raise PeftkitError(lock.lost(self.path))

    def content(self) -> bytes:
        """Sync the file; returns what it holds. Raises PeftkitError where it is not what was written."""
        self.check()
        with files.explained("write", self.path):
            files.sync(self.path)
            found = self.path.read_bytes()
        if hashlib.sha256(found).digest() != self._digest.digest():
            raise PeftkitError(lock.lost(self.path))
        return found

    def close(self) -> None:
        """Close the file."""
        with files.explained("write", self.path):
            self._file.close()


def line(record: dict[str, Any]) -> str:
    """Format a record; numbers keep every bit."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: Path, schema: type[StepRecord] = StepRecord) -> list[dict[str, Any]]:
    """Read the whole records of a log; a last line cut off by a crash is left out, a missing file is an empty log.

    Raises PeftkitError, naming the line and the key, for one that is not what `schema` says.
    """
    with files.explained("read", path):
        if not path.exists():
            return []
        content = path.read_bytes()
    whole, _, _ = content.rpartition(b"\n")
    records = []
    for number, text in enumerate(whole.split(b"\n") if whole else (), 1):
        if not text.strip():
            continue
        place = f"{path}, line {number}"
        record = files.parse_json(text, place, "; each line is the record of a step")
        what = f"{place}: this is no record of a step"
        records.append(schemas.check(schema, record, what, "The file was changed or damaged."))
    return records


def kept(path: Path, last_step: int, schema: type[StepRecord] = StepRecord) -> list[dict[str, Any]]:
    """Read the records of the steps up to `last_step`, all of which have to be there, or it is a PeftkitError."""
    records = [record for record in read(path, schema) if record["step"] <= last_step]
    absent = next((step for step, record in enumerate(records, 1) if record["step"] != step), len(records) + 1)
    if absent <= last_step:
        raise PeftkitError(
            f"{path} lacks the record of step {absent}, and the checkpoint is one of step {last_step}: it was changed "
            "or damaged after it was written. Copy it again from where it was made, or begin another run with --output."
        )
    return records


def begins(path: Path, other: Path) -> bool:
    """Say whether the log at `path` begins with all that `other` holds."""
    with files.explained("read", path):
        return (path.read_bytes() if path.is_file() else b"").startswith(other.read_bytes())
