"""`peft score` on files alone, for each task: what it prints, and what it says of files that are not right."""

from __future__ import annotations

import json

import pytest

TEXTS = ["The Mill is a cheap Italian pub near the river .", "The Fox serves fish in the city centre ."]
GROUPS = [[TEXTS[0], "Near the river there is a cheap pub , The Mill ."], [TEXTS[1]]]
OFFICIAL = """<benchmark><entries>
<entry category="Food" eid="Id1" size="1">
<modifiedtripleset><mtriple>Mill | near | River</mtriple></modifiedtripleset>
<lex lid="Id1">The Mill is near the river.</lex></entry>
<entry category="Artist" eid="Id2" size="1">
<modifiedtripleset><mtriple>Fox | sings | Songs</mtriple></modifiedtripleset>
<lex lid="Id1">Fox sings songs.</lex></entry>
</entries></benchmark>"""


def said(identity, source, *answers):
    turns = [{"turn_id": number, "input_text": answer} for number, answer in enumerate(answers, 1)]
    return {"id": identity, "source": source, "questions": turns, "answers": turns}


CONVERSATIONS = {"version": "1.0", "data": [said("a", "cnn", "yes", "a ship"), said("b", "reddit", "no")]}
ANSWERS = [
    {"id": "a", "turn_id": 1, "answer": "Yes."},
    {"id": "a", "turn_id": 2, "answer": "ship"},
    {"id": "b", "turn_id": 1, "answer": "yes"},
]


@pytest.fixture
def score(peft, tmp_path):
    """Write two files and score them."""

    def run(task, predictions, references, *options, names=("ours.json", "gold.json")):
        paths = [tmp_path / name for name in names]
        for path, content in zip(paths, (predictions, references), strict=True):
            content = content if isinstance(content, str | bytes) else json.dumps(content)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return peft("score", task, "--predictions", paths[0], "--references", paths[1], *options)

    return run


def figures(done):
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.mark.parametrize("task", ["e2e", "webnlg"])
def test_texts_in_lists_or_in_lines_and_blocks(score, task):
    found = figures(score(task, TEXTS, GROUPS, "--json"))
    assert found["BLEU-4"] == found["ROUGE-L"] == pytest.approx(1.0)
    assert found["TER"] == 0.0
    assert found["chrF"] == pytest.approx(100.0)
    assert {f"coco_BLEU-{order}" for order in (1, 2, 3, 4)} | {"NIST", "CIDEr"} <= set(found)
    blocks = "\n\n".join("\n".join(group) for group in GROUPS)
    lines = score(task, "\n".join(TEXTS), blocks, "--json", names=("ours.txt", "gold.txt"))
    assert figures(lines) == found


def test_a_metric_that_cannot_run_is_named_with_the_reason(score):
    found = figures(score("e2e", TEXTS, GROUPS, "--json"))
    assert "METEOR" not in found
    assert found["unavailable"] == {"METEOR": "PEFTKIT_METEOR is off"}
    shown = score("e2e", TEXTS, GROUPS).out
    assert "\nMETEOR: not available: PEFTKIT_METEOR is off\n" in shown


def test_parts_of_webnlg_stand_beside_the_whole(score):
    done = score("webnlg", "The Mill is near the river.\nSongs.", OFFICIAL, names=("ours.txt", "gold.xml"))
    assert done.out.split()[:4] == ["metric", "all", "seen", "unseen"]
    found = figures(
        score("webnlg", "The Mill is near the river.\nSongs.", OFFICIAL, "--json", names=("ours.txt", "gold.xml"))
    )
    assert found["seen/BLEU-4"] == pytest.approx(1.0)
    # One word of three, and the full stop: brevity penalty exp(1 - 4/2), precision 2 of 2.
    assert found["unseen/BLEU-1"] == pytest.approx(0.36788, abs=1e-5)


def test_answers_of_gsm8k(score):
    found = figures(score("gsm8k", ["1 + 1 = 2\n#### 2", "it is 5"], ["#### 2", "#### 5"], "--json"))
    assert found == {"accuracy": 0.5, "accuracy_flexible": 1.0}


def test_answers_of_coqa_by_domain(score):
    found = figures(score("coqa", ANSWERS, CONVERSATIONS, "--json"))
    assert found["em"] == found["f1"] == pytest.approx(200 / 3)
    assert found["news/em"] == 100.0
    assert found["out_domain/f1"] == found["reddit/f1"] == 0.0
    shown = score("coqa", ANSWERS, CONVERSATIONS).out
    assert shown.split()[:5] == ["metric", "all", "news", "reddit", "in_domain"]


@pytest.mark.parametrize(
    ("task", "predictions", "references", "told"),
    [
        ("e2e", TEXTS[:1], GROUPS, "1 predictions for 2 inputs"),
        ("gsm8k", ["#### 1"], ["#### 1", "#### 2"], "1 predictions for 2 inputs"),
        ("gsm8k", ["#### 1"], ["one"], "reference 1 has no line '#### number'"),
        ("e2e", "", GROUPS, "ours.json"),
        ("e2e", [], GROUPS, "a list of 0"),
        ("webnlg", TEXTS, [TEXTS[:1], []], "entry 2: an empty list"),
        ("e2e", TEXTS, {"references": GROUPS}, "gold.json: a JSON list"),
        ("e2e", [{"prediction": "a", "predicton": "b"}], [["a"]], "Did you mean 'prediction'?"),
        ("e2e", ["a"], [{"references": ["a"], "split": "test"}], "'split' is not a field"),
        ("e2e", "caf\xe9".encode("latin-1"), GROUPS, "not UTF-8"),
        ("e2e", '["a"]'.encode("utf-16"), GROUPS, "not UTF-8"),
        ("coqa", [], CONVERSATIONS, "allowed: at least one entry"),
        ("coqa", [{**ANSWERS[0], "anwser": "x"}], CONVERSATIONS, "Did you mean 'answer'?"),
        ("coqa", [{"id": "a", "turn_id": 1}], CONVERSATIONS, "entry 1: answer is missing"),
        ("coqa", [{**ANSWERS[0], "turn_id": 7}], CONVERSATIONS, "turn 7 of 'a'"),
        ("coqa", ANSWERS, {"data": []}, "under 'data'"),
    ],
)
def test_files_that_are_not_right_end_in_one_clean_paragraph(score, task, predictions, references, told):
    done = score(task, predictions, references)
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert "Traceback" not in done.err
