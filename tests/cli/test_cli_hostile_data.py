"""What data, keys and models say reaches a terminal as text: it sees `\\x1b`, never an escape sequence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from peftkit import evaluation
from peftkit.data import bounds
from peftkit.models.named import NAMED

STEERING = "\x1b]0;owned\x07\x9b2J\u202e"
SIGNS = ("\x1b", "\x07", "\x9b", "\u202e")


def steers(done) -> bool:
    return any(sign in done.out + done.err for sign in SIGNS)


@pytest.fixture
def hostile(recipe: Path, tmp_path: Path) -> Path:
    """A recipe whose data hold sequences that steer terminals."""
    row = {"prompt": f"{STEERING} who?", "completion": f"me {STEERING}"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    recipe.write_text(recipe.read_text().replace("bundled/e2e", f"{{name: jsonl, path: {tmp_path / 'train.jsonl'}}}"))
    return recipe


def test_the_first_example_of_validate_steers_nothing(peft, hostile):
    done = peft("validate", hostile)
    assert done.code == 0, done
    assert "\\x1b]0;owned\\x07" in done.out
    assert not steers(done)


def test_examples_token_by_token_steer_nothing(peft, hostile):
    done = peft("data", "show", hostile)
    assert done.code == 0, done
    assert "\\x1b" in done.out
    assert "\\u202e" in done.out
    assert not steers(done)


def test_a_key_in_an_error_steers_nothing(peft, hostile, tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({STEERING: 1, "prompt": "a", "completion": "b"}) + "\n")
    done = peft("validate", hostile)
    assert done.code == 2, done
    assert "line 1" in done.err
    assert not steers(done)


def test_an_error_of_score_steers_nothing(peft, tmp_path):
    (tmp_path / "predictions.jsonl").write_text(json.dumps({"prediction": "a", STEERING: 1}) + "\n")
    (tmp_path / "references.txt").write_text("a\n")
    done = peft(
        "score", "e2e", "--predictions", tmp_path / "predictions.jsonl", "--references", tmp_path / "references.txt"
    )
    assert done.code == 2, done
    assert "owned" in done.err
    assert not steers(done)


@pytest.mark.parametrize("terminal", [True, False])
def test_an_answer_is_raw_for_a_file_alone(peft, tmp_path, monkeypatch, terminal):
    monkeypatch.setattr(evaluation, "answer", lambda *given, **options: STEERING)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    done = peft("generate", tmp_path, "who?")
    assert done.code == 0, done
    assert steers(done) is not terminal
    assert "owned" in done.out


def test_a_chat_template_that_never_ends_is_told(peft, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "SECONDS", 0.2)
    model = tmp_path / "model"
    model.mkdir()
    for path in NAMED["bundled/tiny"]().iterdir():
        (model / path.name).symlink_to(path)
    settings = model / "tokenizer_config.json"
    content = json.loads(settings.read_text())
    settings.unlink()
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    settings.write_text(json.dumps({**content, "chat_template": endless}))
    done = peft("validate", recipe, f"model={model}")
    assert done.code == 2, done
    assert "the chat template of" in done.err
    assert "it takes more than 0.2 s" in done.err
