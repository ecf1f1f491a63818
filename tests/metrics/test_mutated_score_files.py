"""Files of predictions and references changed at random: `peft score` scores them, or says what is wrong and where."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from attempts import attempt, held
from draw import thorough
from mutated_files import HELD, PORTIONS, mutate

TEXTS = ["a red house", "an old stone by the river", "Née où?\u2028Here", "24"]
REFERENCES = [[text, f"the {text}"] for text in TEXTS]
MR = "name[Café {}], food[B]"
CSV = "mr,ref\r\n" + "".join(f'"{MR.format(n)}","{text}"\r\n' for n, text in enumerate(TEXTS))
TRIPLES = "<modifiedtripleset><mtriple>A | b | {}</mtriple></modifiedtripleset>"
XML = '<?xml version="1.0"?>\n<benchmark><entries>' + "".join(
    f'<entry category="Food" eid="Id{n}" size="1">{TRIPLES.format(n)}<lex comment="good" lid="Id1">{text}</lex></entry>'
    for n, text in enumerate(TEXTS)
)
TURNS = [{"turn_id": n, "input_text": text} for n, text in enumerate(TEXTS, 1)]
COQA = {"id": "c", "source": "cnn", "story": "s", "questions": TURNS, "answers": TURNS}
ANSWERS = [{"id": "c", "turn_id": n, "answer": text} for n, text in enumerate(TEXTS, 1)]
RECORDS = [
    {"id": str(n), "prompt": "p", "prediction": text, "references": REFERENCES[n], "finished": True}
    for n, text in enumerate(TEXTS)
]
PROBLEMS = [{"question": text, "answer": f"{text} #### 2"} for text in TEXTS]
PAIRED = [{"prompt": text, "completion": text} for text in TEXTS]
PLAIN = "\n".join(text.replace("\u2028", " ") for text in TEXTS)


def lines(records: Sequence[object]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


PAIRS: list[tuple[str, tuple[str, str], tuple[str, str]]] = [
    ("e2e", ("p.txt", PLAIN), ("r.csv", CSV)),
    ("e2e", ("p.json", json.dumps(TEXTS)), ("r.json", json.dumps(REFERENCES))),
    ("webnlg", ("p.jsonl", lines(RECORDS)), ("r.xml", XML + "</entries></benchmark>")),
    ("webnlg", ("p.txt", PLAIN), ("r.txt", "\n\n".join(PLAIN.split("\n")))),
    ("coqa", ("p.json", json.dumps(ANSWERS)), ("r.json", json.dumps({"data": [COQA]}))),
    ("coqa", ("p.jsonl", lines(RECORDS)), ("r.jsonl", lines(RECORDS))),
    (
        "gsm8k",
        ("p.json", json.dumps(TEXTS)),
        ("r.jsonl", lines([{"question": t, "answer": f"{t} #### 2"} for t in TEXTS])),
    ),
    ("jsonl", ("p.jsonl", lines(RECORDS)), ("r.jsonl", lines(PAIRED))),
]


def write(folder: Path, number: int) -> list[object]:
    """Write a pair of files; returns the arguments of the command that scores them."""
    task, *pair = PAIRS[number]
    for name, text in pair:
        (folder / name).write_text(text, encoding="utf-8")
    predictions, references = (folder / name for name, _ in pair)
    return ["score", task, "--predictions", predictions, "--references", references]


@pytest.mark.parametrize("number", range(len(PAIRS)))
def test_the_unchanged_files_are_scored(number: int, tmp_path: Path):
    assert attempt(write(tmp_path, number), PAIRS[number][0]).code == 0


@pytest.mark.parametrize("cases", [HELD, *map(thorough, PORTIONS)], ids=lambda cases: f"{cases[0]}-{cases[-1]}")
def test_changed_files_of_a_score(cases: range, tmp_path: Path):
    for case in cases:
        chance, folder = random.Random(case), tmp_path / str(case)
        folder.mkdir()
        arguments = write(folder, case % len(PAIRS))
        told = f"case {case}: {mutate(chance.choice(sorted(folder.iterdir())), chance)}"
        there = held(folder)
        attempt(arguments, told)
        assert held(folder) == there, told
