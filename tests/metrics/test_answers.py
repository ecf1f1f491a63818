"""The two metrics of short answers, and their files."""

from __future__ import annotations

import json

import pytest

from peftkit.errors import PeftkitError
from peftkit.metrics import METRICS, coqa
from peftkit.tasks import TASKS


def test_accuracy_takes_the_first_marked_number_and_the_flexible_one_the_last_of_any_kind():
    gold = [["so 3 + 4 = 7\n#### 7"]] * 5 + [["#### 1,200"]]
    answers = ["#### 7", "#### 8 #### 7", "it is 7", "#### 7.0", "none", "it sums to #### 1200"]
    scores = METRICS["gsm8k"].score(answers, gold)
    assert scores == {"accuracy": pytest.approx(2 / 6), "accuracy_flexible": pytest.approx(5 / 6)}


def test_a_reference_without_an_answer_is_refused():
    with pytest.raises(PeftkitError, match="reference 2 has no line"):
        METRICS["gsm8k"].score(["#### 1", "#### 1"], [["#### 1"], ["one"]])


def test_files_of_worked_answers(tmp_path):
    (tmp_path / "ours.json").write_text(json.dumps(["#### 1", "#### 3"]))
    (tmp_path / "gold.txt").write_text("#### 1\n#### 2\n")
    scores = TASKS["gsm8k"].score_files(tmp_path / "ours.json", tmp_path / "gold.txt")
    assert scores == {"accuracy": 0.5, "accuracy_flexible": 0.5}


def test_each_human_answer_is_left_out_in_turn():
    # Without the first: the best of {red} is 0; without either "red": 1 from the other... only "blue" is matched here.
    exact, f1 = coqa.score_turn("the blue.", ["blue", "red", "red"])
    assert exact == pytest.approx(2 / 3)
    assert f1 == pytest.approx(2 / 3)
    # F1 of "blue car" with "blue": P 1/2, R 1, so 2/3; with one answer nothing is left out.
    assert coqa.score_turn("a blue car", ["Blue"]) == (0.0, pytest.approx(2 / 3))


def test_people_are_scored_against_each_other():
    assert coqa.score_people(["yes", "Yes.", "no"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    with pytest.raises(PeftkitError, match="one answer only"):
        coqa.score_people(["yes"])


def conversation(identity, source, *answers):
    turns = [{"turn_id": number, "input_text": answer} for number, answer in enumerate(answers, 1)]
    return {"id": identity, "source": source, "questions": turns, "answers": turns}


@pytest.fixture
def gold(tmp_path):
    path = tmp_path / "gold.json"
    path.write_text(
        json.dumps({"data": [conversation("a", "cnn", "yes", "a tall ship"), conversation("b", None, "no")]})
    )
    return path


def write(tmp_path, *entries):
    path = tmp_path / "ours.json"
    path.write_text(json.dumps([{"id": id, "turn_id": turn, "answer": answer} for id, turn, answer in entries]))
    return path


def test_files_are_scored_by_domain_and_missing_turns_count_as_nothing(tmp_path, gold):
    figures = coqa.score_files(write(tmp_path, ("a", 1, "Yes"), ("a", 2, "tall")), gold)
    # Exact match 1, 0, 0; F1 1, 2/3 ("tall" of "tall ship"), 0.
    assert figures["em"] == pytest.approx(100 / 3)
    assert figures["f1"] == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert (figures["turns"], figures["missing"]) == (3, 1)
    assert figures["news/em"] == figures["in_domain/em"] == pytest.approx(50)
    assert "science/em" not in figures


def test_predictions_of_other_turns_are_refused(tmp_path, gold):
    with pytest.raises(PeftkitError, match="turn 3 of 'a'"):
        coqa.score_files(write(tmp_path, ("a", 3, "yes")), gold)
    with pytest.raises(PeftkitError, match="entry 2: turn 1 of 'a' is answered twice"):
        coqa.score_files(write(tmp_path, ("a", 1, "yes"), ("a", 1, "no")), gold)
    with pytest.raises(PeftkitError, match="entry 1: turn_id: found '1'"):
        coqa.score_files(write(tmp_path, ("a", "1", "yes")), gold)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "under 'data'"),
        ({"data": []}, "under 'data'"),
        ({"data": [{"id": "a"}]}, "conversation 1: questions is missing"),
        ({"data": [conversation("a", "radio", "yes")]}, "conversation 1: source: found 'radio'"),
        ({"data": [conversation("a", "cnn")]}, "no questions"),
    ],
)
def test_references_in_another_layout_are_refused(tmp_path, content, message):
    path = tmp_path / "gold.json"
    path.write_text(json.dumps(content))
    with pytest.raises(PeftkitError, match=message):
        coqa.read_turns(path)
