"""Predictions and references in each of the file layouts."""

from __future__ import annotations

import json

import pytest

from peftkit.errors import PeftkitError
from peftkit.metrics.files import read_predictions, read_references


@pytest.fixture
def write(tmp_path):
    def written(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return written


def test_predictions(write):
    assert read_predictions(write("a.json", ["one", "", " two\n"])) == ["one", "", "two"]
    assert read_predictions(write("a.txt", "one\r\n\n two \n")) == ["one", "", "two"]
    assert read_predictions(write("b.txt", "one\n[two")) == ["one", "[two"]
    lines = json.dumps({"id": "x", "prediction": "one"}) + "\n" + json.dumps("line\nbreak") + "\n"
    assert read_predictions(write("a.jsonl", lines)) == ["one", "line\nbreak"]


def test_unicode_line_separators_do_not_separate_predictions(write):
    assert read_predictions(write("a.txt", "one\u2028still\u0085one\ntwo\n")) == ["one\u2028still\u0085one", "two"]


def test_references(write):
    assert read_references(write("a.json", [["one", "two"], "three"])) == [["one", "two"], ["three"]]
    assert read_references(write("a.txt", "one\ntwo\n\n\nthree\n\n")) == [["one", "two"], ["three"]]
    lines = json.dumps({"references": ["one", "two"]}) + "\n" + json.dumps(["three"])
    assert read_references(write("a.jsonl", lines)) == [["one", "two"], ["three"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", {"prediction": "one"}, "a JSON list with at least one entry"),
        ("a.json", [], "this is a list of 0"),
        ("a.json", ["one", 2], "entry 2: a text is wanted, and this is a number"),
        ("a.json", [{"id": "one"}], "entry 1: no key 'prediction'; found: id"),
        ("a.json", [{"answer": "one"}], "entry 1: 'answer' is not a field.* Allowed: finished, id, prediction"),
        ("a.json", "[", "line 1: not valid JSON"),
        ("a.jsonl", '"one"\n"two', "line 2: not valid JSON"),
        ("a.txt", " \n", "is empty"),
    ],
)
def test_faulty_predictions_are_told_with_their_place(write, name, content, message):
    with pytest.raises(PeftkitError, match=message):
        read_predictions(write(name, content))


def test_faulty_references_are_told_with_their_place(write):
    with pytest.raises(PeftkitError, match="entry 2: an empty list"):
        read_references(write("a.json", [["one"], []]))
    with pytest.raises(PeftkitError, match="entry 1: a text is wanted, and this is null"):
        read_references(write("a.json", [[None]]))


def test_a_file_that_is_not_there_and_one_in_another_encoding(tmp_path):
    with pytest.raises(PeftkitError, match="cannot read"):
        read_predictions(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(PeftkitError, match="line 1: not UTF-8"):
        read_references(tmp_path / "latin.txt")
