"""The files of LLM-Adapters, and its rules for the answers that stand in a response."""

from __future__ import annotations

import json

import pytest

from peftkit.errors import PeftkitError
from peftkit.metrics import METRICS
from peftkit.tasks import TASKS

RECORD = {"instruction": "What is 1 + 1?", "input": "", "output": "It is 2.", "answer": 2.0}


def write(folder, name, records):
    (folder / f"{name}.json").write_text(json.dumps(records))


def test_the_response_is_trained_on_and_the_short_answer_scored(tmp_path):
    write(tmp_path, "math_10k", [{**RECORD, "input": "Mind the sum."}] * 20)
    write(tmp_path, "test", [RECORD])
    task = TASKS["math_10k"]
    train, validation, (test,) = (task.read(tmp_path, split) for split in ("train", "validation", "test"))
    assert (len(train), len(validation)) == (18, 2)
    assert not {example.id for example in train} & {example.id for example in validation}
    assert [turn.text for turn in train[0].turns] == ["What is 1 + 1?\n\nMind the sum.", "It is 2."]
    assert [turn.text for turn in test.turns] == ["What is 1 + 1?", "It is 2."]
    assert test.references == ("2.0",)
    assert task.score([test], ["So it is 2"])["accuracy"] == 1


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("First 3, then 1,250 in all.", "1250", True),
        ("The answer is 0.3334", "0.3333", True),
        ("The answer is 0.335", "0.3333", False),
        ("The answer is -4.", "-4.0", True),
        ("4 is the answer to 5", "4", False),
        ("no number", "4", False),
        ("The answer is C, not A.", "C", True),
        ("It is D.", "C", False),
    ],
)
def test_the_last_number_or_first_letter_counts(prediction, reference, right):
    assert METRICS["last_number"].score([prediction], [[reference]])["accuracy"] == right


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("the correct answer is true", "true", True),
        ("false, or rather true", "true", False),
        ("the correct answer is answer3", "answer3", True),
        ("the correct answer is solution2", "answer2", False),
        ("ending4 and not ending1", "ending1", False),
        ("", "option1", False),
    ],
)
def test_the_first_choice_counts(prediction, reference, right):
    assert METRICS["first_choice"].score([prediction], [[reference]])["accuracy"] == right


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ({"data": []}, r"math_10k.json: found an object, and a list of objects is wanted"),
        ([RECORD, {**RECORD, "answer": None}], r"math_10k.json, \[1\]: 'answer': found null, and text or a number"),
        ([{key: RECORD[key] for key in ("instruction", "output")}], r"\[0\]: 'answer': there is none"),
        ([{**RECORD, "output": 3}], r"\[0\]: 'output' is a whole number, and text is wanted"),
        ([{"instruction": "x"}], r"\[0\]: the object has no 'output'"),
        (["x"], r"\[0\]: the object is text"),
    ],
)
def test_a_fault_is_told_with_its_file_and_place(records, told, tmp_path):
    write(tmp_path, "math_10k", records)
    with pytest.raises(PeftkitError, match=told):
        TASKS["math_10k"].read(tmp_path, "train")


def test_a_reference_that_is_no_choice_is_refused():
    with pytest.raises(PeftkitError, match=r"reference 1 is 'maybe', and true, false, or a numbered choice"):
        METRICS["first_choice"].score(["true"], [["maybe"]])
