"""A key that stands twice in one object of JSON: refused with its line, wherever a person's JSON is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftkit import files, strict_json
from peftkit.errors import PeftkitError
from peftkit.metrics.files import entries
from peftkit.tasks import TASKS

ONE = '{"prompt": "p", "completion": "c", "id": 3}'
TWO = '{"prompt": "p", "completion": "a", "completion": "b"}'
LINES = TWO.replace(", ", ",\n")
CALL = json.dumps({"messages": [{"role": "function_call", "content": '{"name": "f", "arguments": {"x": 1, "x": 2}}'}]})
CASES = [
    ("train.jsonl", f"{ONE}\n{TWO}\n", r"train.jsonl, line 2: the key 'completion' stands twice"),
    ("train.jsonl", f'{ONE}\n{{"messages": [{{"role": "user", "role": "user"}}]}}', r"line 2: the key 'role' stands"),
    ("train.jsonl", CALL, r"line 1, messages\[0\], 'content': the key 'x' stands twice"),
    ("train.json", f"[\n{ONE},\n\n{LINES}]", r"train.json, line 4: the key 'completion' stands twice"),
]


@pytest.mark.parametrize(("name", "content", "message"), CASES)
def test_data_with_a_key_twice_is_refused(name: str, content: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(PeftkitError, match=message):
        TASKS["jsonl"].read(tmp_path / name, "train")


def test_files_of_predictions_and_of_runs_are_read_alike(tmp_path: Path):
    path = tmp_path / "predictions.json"
    path.write_text('[{"prediction": "a"},\n {"prediction": "b", "prediction": "c"}]')
    for read in (files.read_json, lambda path: list(entries(path, "prediction"))):
        with pytest.raises(PeftkitError, match=r"predictions.json, line 2: the key 'prediction' stands twice"):
            read(path)


@pytest.mark.parametrize("text", [ONE, "[1, [2.5, null, {}]]", '"\\u00e9\u2028"', '{"a": {"a": {"a": NaN}}}', "0"])
def test_whatever_else_is_json_is_read_as_json_reads_it(text: str):
    wanted = json.dumps(json.loads(text))
    assert json.dumps(strict_json.loads(text)) == json.dumps(strict_json.loads(text.encode("utf-16"))) == wanted


@pytest.mark.parametrize("text", ["", "{", '{"a": 1, "a": }', "\ufeff{}", "[1] 2"])
def test_what_is_no_json_is_told_as_json_tells_it(text: str):
    with pytest.raises(json.JSONDecodeError) as wanted:
        json.loads(text)
    with pytest.raises(json.JSONDecodeError) as found:
        strict_json.loads(text)
    assert str(found.value) == str(wanted.value)
