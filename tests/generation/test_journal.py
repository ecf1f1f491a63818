"""Answers on the disk belong to one evaluation: another one of the same split never goes on from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftkit.generation.journal import Journal


def record(number: int) -> dict[str, Any]:
    return {"chunk": number, "wall_s": 0.5, "answers": [[number, "\u2028é", [1, 2], True, False]]}


def test_an_interrupted_evaluation_goes_on(tmp_path: Path):
    path = tmp_path / "eval" / "answers.jsonl"
    journal = Journal(path, "key")
    journal.append(record(0))
    with path.open("a") as file:
        file.write('{"chunk": 1, "wa')
    journal = Journal(path, "key")
    assert journal.records == [record(0)]
    journal.append(record(1))
    assert Journal(path, "key").records == [record(0), record(1)]
    assert Journal(path, "other").records == []


def test_two_evaluations_at_once_do_not_take_each_other_s_answers(tmp_path: Path):
    """As of one run with two limits: what the first still writes is none of the second's."""
    path = tmp_path / "answers.jsonl"
    first = Journal(path, "ten inputs")
    first.append(record(0))
    second = Journal(path, "twenty inputs")
    second.append(record(0))
    first.append(record(1))
    assert Journal(path, "twenty inputs").records == [record(0)]
    first.remove()
    second.append(record(1))
    assert not path.exists()
