"""Every metric equals the official scorer on the golden files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from peftkit.metrics import METRICS, coqa, gsm8k, mteval, ptb

DATA = Path(os.environ.get("PEFTKIT_SHARED_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
GOLDEN = DATA / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden files are not on this machine")
TEXTS = sorted(path.stem for path in GOLDEN.glob("nlg_*.json")) or ["absent"]
TOKENS = sorted(path.stem for path in GOLDEN.glob("tokens/*.json")) or ["absent"]
READERS = ("coqa_real_reader", "coqa_real_bert_base")
SOLUTIONS = ("gsm8k_real_6b_finetuning", "gsm8k_real_175b_verification")


def read(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TEXTS)
def test_text_metrics_equal_the_official_scorers(name):
    case = read(name)
    official = {**case["other"], **case["scores"]}
    for metric in ("bleu", "nist", "rouge_l", "cider", "coco_bleu"):
        for key, value in METRICS[metric].score(case["hypotheses"], case["references"]).items():
            assert value == pytest.approx(official[key], abs=1e-9), key


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_equal_the_official_tokenizers(name):
    case, tokens = read(f"nlg_{name}"), read(f"tokens/{name}")
    assert [" ".join(mteval.tokenize(text)) for text in case["hypotheses"]] == [
        text.strip() for text in tokens["mteval"]["hypotheses"]
    ]
    assert [" ".join(found) for found in ptb.tokenize_lines(case["hypotheses"])] == tokens["ptb"]["hypotheses"]
    assert [[" ".join(found) for found in group] for group in ptb.tokenize_groups(case["references"])] == tokens["ptb"][
        "references"
    ]


def test_answers_are_extracted_as_by_the_official_rule():
    for case in read("gsm8k_extract")["cases"]:
        assert gsm8k.extract(case["text"]) == case["extracted"], case["text"]


def test_pairs_are_judged_as_by_the_official_rule():
    for case in read("gsm8k_pairs")["cases"]:
        if case["extracted_reference"] != gsm8k.INVALID:
            accuracy = METRICS["gsm8k"].score([case["output"]], [[case["reference"]]])["accuracy"]
            assert accuracy == case["correct"], case


@pytest.mark.parametrize("name", SOLUTIONS)
def test_accuracy_of_published_solutions(name):
    case = read(name)
    scores = METRICS["gsm8k"].score(
        [item["output"] for item in case["items"]], [[item["reference"]] for item in case["items"]]
    )
    assert scores["accuracy"] == pytest.approx(case["accuracy"], abs=1e-12)


def test_single_answers_are_normalized_and_scored_as_by_the_official_script():
    for case in read("coqa_turns")["cases"]:
        assert coqa.normalize(case["prediction"]) == case["normalized_prediction"], case["name"]
        assert [coqa.normalize(answer) for answer in case["gold_answers"]] == case["normalized_gold"], case["name"]
        assert coqa.score_turn(case["prediction"], case["gold_answers"]) == pytest.approx((case["em"], case["f1"]))


@pytest.mark.parametrize("name", READERS)
def test_published_readers_score_as_by_the_official_script(name):
    case = read(name)
    turns = case["turns"]
    for turn in turns:
        assert coqa.score_turn(turn["prediction"], turn["gold_answers"]) == pytest.approx((turn["em"], turn["f1"]))
    scores = METRICS["coqa"].score([turn["prediction"] for turn in turns], [turn["gold_answers"] for turn in turns])
    assert scores["em"] == pytest.approx(case["scores"]["em_unrounded"], abs=1e-9)
    assert scores["f1"] == pytest.approx(case["scores"]["f1_unrounded"], abs=1e-9)
    people = coqa.means(coqa.score_people(turn["gold_answers"]) for turn in turns)
    assert people["em"] == pytest.approx(case["human"]["em_unrounded"], abs=1e-9)
    assert people["f1"] == pytest.approx(case["human"]["f1_unrounded"], abs=1e-9)


@pytest.mark.parametrize("name", READERS)
def test_a_turn_without_a_prediction_counts_as_nothing(name):
    case = read(name)
    turns = {(turn["id"], turn["turn_id"]): coqa.Question(tuple(turn["gold_answers"]), None) for turn in case["turns"]}
    kept = [turn for index, turn in enumerate(case["turns"]) if index % 7 != 3]
    scores = {(turn["id"], turn["turn_id"]): coqa.score_turn(turn["prediction"], turn["gold_answers"]) for turn in kept}
    overall = coqa.report(turns, scores)["overall"]
    printed = {"em": round(overall["em"], 1), "f1": round(overall["f1"], 1), "turns": overall["turns"]}
    assert printed == case["missing_predictions"]["overall"]


def test_the_report_by_domain_equals_the_official_script(tmp_path):
    case = read("coqa_domains")
    sample = DATA / "coqa" / "coqa-dev-sample.json"
    turns = coqa.read_turns(sample)
    answers = {(entry["id"], entry["turn_id"]): entry["answer"] for entry in case["predictions"]}
    scored = {key: coqa.score_turn(answer, turns[key].answers) for key, answer in answers.items()}
    people = {key: coqa.score_people(turn.answers) for key, turn in turns.items()}
    for scores, official in ((scored, case["report"]), (people, case["human_report"])):
        rounded = {
            name: {key: round(value, 1) for key, value in group.items()}
            for name, group in coqa.report(turns, scores).items()
        }
        assert rounded == official
    predictions = tmp_path / "predictions.json"
    predictions.write_text(json.dumps(case["predictions"]), encoding="utf-8")
    figures = coqa.score_files(predictions, sample)
    assert round(figures["em"], 1) == case["report"]["overall"]["em"]
    assert round(figures["news/f1"], 1) == case["report"]["news"]["f1"]
    assert "reddit/em" not in figures
    assert figures["missing"] == 0
