"""Our treebank tokens are those of the official program on every text that it is asked about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from drawn_lines import draw, texts

from peftkit.metrics import UnavailableError, java, ptb, ptb_program
from peftkit_cli.main import main

FIXTURES = json.loads((Path(__file__).resolve().parent / "tokens.json").read_text(encoding="utf-8"))
BUNDLED = Path(ptb.__file__).parents[1] / "data" / "bundled"
NEUTRAL = "a text between others"
program = pytest.mark.skipif(
    not (java.runtime() and ptb_program.archive()),
    reason="the official tokenizer is not here: peftkit[meteor] brings it",
)


def differences(lines: Sequence[str]) -> list[int]:
    """Return the indices of the lines of which the program makes other tokens."""
    with ptb.treebank_tokens(official=True):
        official = ptb.tokenize_lines(lines)
    ours = ptb.tokenize_lines(lines)
    return [index for index, (one, other) in enumerate(zip(ours, official, strict=True)) if one != other]


def smallest(line: str) -> str:
    """Cut halves, quarters, … out of a line while what is left of it still differs."""
    size = len(line) // 2
    while size:
        cuts = [line[:start] + line[start + size :] for start in range(0, len(line), size)]
        different = differences([text for cut in cuts for text in (cut, NEUTRAL)])
        if different:
            line = cuts[different[0] // 2]
        size = min(size, len(line) // 2) if different else size // 2
    return line


def check(lines: Sequence[str]) -> None:
    """Fail, with the first line that differs as small as can be, unless the tokens of all lines are the program's."""
    different = differences(lines)
    if not different:
        return
    first = different[0]
    alone = bool(differences([lines[first], NEUTRAL]))
    shown = [smallest(lines[first])] if alone else [*lines[first : first + 2]]
    with ptb.treebank_tokens(official=True):
        official = ptb.tokenize_lines(shown)
    kind = "shrunk" if alone else "with the next"
    pytest.fail(
        f"{len(different):,} of {len(lines):,} lines differ; the first, {kind}: {shown!a}\n"
        f"ours:     {ptb.tokenize_lines(shown)!a}\nofficial: {official!a}"
    )


def test_tokens_that_the_program_once_gave():
    assert len(FIXTURES) > 60
    found = ptb.tokenize_lines([fixture["text"] for fixture in FIXTURES])
    for fixture, tokens in zip(FIXTURES, found, strict=True):
        assert list(tokens) == fixture["tokens"], fixture["text"]


@program
def test_the_program_still_gives_them_and_those_of_bundled_and_drawn_lines():
    bundled = texts(BUNDLED)
    assert len(bundled) > 1000
    with ptb.treebank_tokens(official=True) as source:
        given = ptb.tokenize_lines([fixture["text"] for fixture in FIXTURES])
    assert source.name == ptb_program.NAME
    assert [list(tokens) for tokens in given] == [fixture["tokens"] for fixture in FIXTURES]
    check([*bundled, *draw(bundled, 1000, seed=1)])


@program
@pytest.mark.thorough
def test_all_texts_of_the_data_sets(shared_data):
    check(texts(shared_data))


@program
@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(4))
def test_drawn_lines_of_the_data_sets(shared_data, seed):
    lines = texts(shared_data / "e2e") + texts(shared_data / "webnlg")
    check(draw(lines, 50_000, seed))


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("end", "\r\x0b\x0c\u2028\u2029")
def test_a_character_that_ends_a_line_is_refused_with_its_text(official, end):
    fault = f"has the character U\\+{ord(end):04X}, which ends a line"
    with ptb.treebank_tokens(official=official):
        with pytest.raises(UnavailableError, match=f"prediction 2 {fault}"):
            ptb.tokenize_lines(["a", f"b{end}c", "d"])
        with pytest.raises(UnavailableError, match=f"reference 2 of input 2 {fault}"):
            ptb.tokenize_groups([["a"], ["b", f"b{end}c"]])
    assert ptb.tokenize_lines(["a\nb", "c"]) == [("a", "b"), ("c",)]


def test_a_tag_that_a_later_text_closes_is_refused_with_its_text():
    with pytest.raises(UnavailableError, match="prediction 1 opens the tag '<a b=\"c'"):
        ptb.tokenize_lines(['see <a b="c', 'd"> there'])
    assert ptb.tokenize_lines(['see <a b="c', "d there"])[0] == ("see", "<", "a", "b", "=", "c")


@program
def test_such_characters_and_tags_put_the_program_out_of_step():
    """What is refused would be wrong: a text more, or one that reaches into the next."""
    with pytest.raises(UnavailableError, match="6 lines for 1 texts, so its lines are out of step"):
        ptb_program.tokenize(["a\rb\x0bc\x0cd\u2028e\u2029f"])
    found = ptb_program.tokenize(['<a b="c', 'd"> e', "", "a", "", " ", ""])
    assert found == [('<a\u00a0b="c',), ('d">', "e"), (), ("a",), (), (), ()]


@program
@pytest.mark.parametrize("options", [(), ("--official",)])
def test_the_command_scores_with_the_tokens_that_are_asked_for(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PEFTKIT_METEOR", "off")
    (tmp_path / "ours.json").write_text(json.dumps(["It costs 1 1/2 pounds, doesn't it?", "Plan B."]))
    (tmp_path / "gold.json").write_text(json.dumps([["It costs pounds."], ["The plan."]]))
    files = ["--predictions", str(tmp_path / "ours.json"), "--references", str(tmp_path / "gold.json")]
    assert main(["score", "e2e", *files, *options, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert {"ROUGE-L", "CIDEr", "coco_BLEU-4"} <= scores.keys()
    assert scores.get("treebank_tokens") == (ptb_program.NAME if options else None)


def test_tokens_of_a_program_that_is_not_there_are_no_others(monkeypatch):
    monkeypatch.setattr(ptb_program, "archive", lambda: None)
    with ptb.treebank_tokens(official=True), pytest.raises(UnavailableError, match=r"install peftkit\[meteor\]"):
        ptb.tokenize_lines(["not asked before"])


def test_a_task_without_such_tokens_refuses_the_program(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps(["#### 5"]))
    files = ["--predictions", str(tmp_path / "a.json"), "--references", str(tmp_path / "a.json")]
    assert main(["score", "gsm8k", *files, "--official"]) == 2
    assert "--official: no score of gsm8k counts treebank tokens" in capsys.readouterr().err
