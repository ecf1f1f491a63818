"""`peft data show`: what it prints of a recipe's data, in a pipe and on a terminal, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from peftkit.inspection import TokenPiece
from peftkit_cli import data

ROW = [TokenPiece("Ask", False), TokenPiece(":\n", False), TokenPiece("y", True), TokenPiece("es", True)]


@pytest.fixture
def own(recipe: Path, tmp_path: Path) -> Path:
    """A recipe of a file with a repeat, an empty answer, and one that does not fit."""
    records = [("a", "b"), ("Red?", "No."), ("a", "b"), ("c", ""), ("d", "word " * 50)]
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in records]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    text = recipe.read_text().replace("bundled/e2e", f"{{name: jsonl, path: {tmp_path / 'train.jsonl'}}}")
    recipe.write_text(text.replace("max_steps", "max_length: 24, max_steps"))
    return recipe


def test_everything_is_told(peft, own):
    done = peft("data", "show", own, "--rows", "2,4")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "examples    5 with 4 different prompts" in lines
    assert "duplicates  1 example repeats an earlier one: train.jsonl:3 is train.jsonl:1" in lines
    assert any(re.match(r"dropped     1 example: there is nothing .*\(train.jsonl:4\)$", line) for line in lines)
    assert any(
        re.match(r"cut         1 example: the answer lost its end.*24.*\(train.jsonl:5\)$", line) for line in lines
    )
    assert any(re.match(r" +24–25  █+ 1$", line) for line in lines), "the histogram has a bar for the longest row"
    assert "example 2 (train.jsonl:2)" in lines
    shown = done.out.partition("example 2")[2]
    marked = re.search(r"«(.+)»", shown)
    assert marked
    assert marked[1].replace("│", "") == "No.<|end|>"
    assert "│" in marked[1]
    assert "example 4 (train.jsonl:4)\ndropped: there is nothing" in done.out


def test_marks_are_text_in_a_pipe_and_colour_on_a_terminal():
    assert data.plain(ROW).plain == "Ask│:⏎\n│«y│es»"
    painted = data.painted(ROW)
    assert painted.plain == "Ask:⏎\nyes"
    styles = [str(span.style) for span in painted.spans]
    assert len(set(styles)) == 4, "neighbours differ, and so do what is trained on and what is not"
    screen = Console(force_terminal=True, color_system="truecolor", width=40)
    with screen.capture() as captured:
        screen.print(painted)
    assert "\x1b[" in captured.get()


def test_texts_steer_no_terminal():
    hostile = [TokenPiece("\x1b]0;owned\x07", True)]
    for text in (data.plain(hostile).plain, data.painted(hostile).plain):
        assert "\x1b" not in text
        assert "\\x1b]0;owned\\x07" in text


def test_overrides_say_what_another_length_costs(peft, own):
    assert "nothing is cut" not in peft("data", "show", own).out
    assert "cut  " not in peft("data", "show", own, "train.max_length=400").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "--rows", "3,x"], "--rows: found 'x' in '3,x'; allowed: numbers of examples from 1, such as 3,17."),
        (["show", "--rows", ""], "--rows: found ''"),
        (["show", "--rows", "9"], "rows: found 9; allowed: 1 to 5, the examples of the split 'train'."),
        (["show", "--split", "tran"], "'tran' is not a split. Did you mean 'train'?"),
        (["shwo"], "No such command 'shwo'. Did you mean 'show'?"),
        ([], "allowed: show, as in `peft data show RECIPE`"),
    ],
)
def test_what_is_wrong_is_refused_with_the_place_and_the_way_out(peft, own, arguments, said):
    given = [*arguments[:1], own, *arguments[1:]] if arguments[:1] == ["show"] else arguments
    done = peft("data", *given)
    assert done.code == 2
    assert said in done.err
