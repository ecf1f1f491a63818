"""What `eval/` in a run folder holds, read back: the report of an evaluation, and the record of each answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from peftkit import files, schemas
from peftkit.errors import PeftkitError
from peftkit.schemas import Count, Stored, Text

AGAIN = "Run peft eval again."


class StoredReport(Stored):
    """What others take from a report."""

    scores: Annotated[dict[str, float], Field(min_length=1)]
    dataset: Text
    split: Text
    limit: Annotated[int, Field(ge=1)] | None
    examples: Count
    model: Text
    unavailable: dict[str, str] = {}
    unfinished: Count = 0
    wall_s: float | None = None
    tokens_per_second: float | None = None


class StoredAnswer(Stored):
    """What every record of an answer has."""

    id: Text
    prompt: str


class StoredText(StoredAnswer):
    """The record of a generated answer."""

    prediction: str
    references: Annotated[list[str], Field(min_length=1)]


def read_report(path: Path) -> dict[str, Any]:
    """Read a report; one that is damaged is a PeftkitError."""
    return schemas.read(path, StoredReport, AGAIN, "is not an evaluation")


def read_answers(path: Path, report: Path, examples: int) -> list[dict[str, Any]]:
    """Read the records of the answers to so many `examples` beside a `report`; a damaged file is a PeftkitError.

    What an objective's module predicted has a `label` in the place of references.
    """
    records = []
    for number, line in enumerate(files.read_lines(path), 1):
        place = f"{path} is not an evaluation: line {number}"
        value = files.parse_json(line, place, f". {AGAIN.rstrip('.')}")
        record = schemas.check(StoredAnswer, value, place, AGAIN)
        records.append(record if "label" in record else schemas.check(StoredText, record, place, AGAIN))
    if len(records) != examples:
        raise PeftkitError(f"{path} holds {len(records)} answers, and {report.name} is of {examples}. {AGAIN}")
    return records
