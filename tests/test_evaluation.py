"""Evaluating runs, their bases and bare recipes on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from model_folders import write_model
from random_runs import write_random_run

from peftkit.errors import PeftkitError
from peftkit.evaluation import answer, evaluate
from peftkit.metrics import ptb_program
from peftkit.recipe import load as load_recipe

ROWS = [("a b", "one"), ("c d", "two"), ("a b", "three"), ("e f", "four")]


def write_rows(folder: Path) -> Path:
    """Write four references of three inputs for testing and for training."""
    folder.mkdir()
    for split in ("train", "test"):
        rows = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in ROWS]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return load_recipe(
        {
            "model": str(write_model(folder / "model")),
            "method": "lora",
            "dataset": {"name": "jsonl", "path": str(write_rows(folder / "data"))},
            "train": {"device": "cpu"},
            "generation": {"max_new_tokens": 6},
        }
    )


@pytest.fixture
def run(tmp_path, recipe):
    """A run folder whose adapter has random weights, so that its answers differ from the base's."""
    return write_random_run(tmp_path / "run", recipe, 1.0)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_is_scored_and_written_beside_its_adapter(run):
    told = []
    report = evaluate(run, on_progress=lambda *counts: told.append(counts))
    assert json.loads((run / "eval" / "jsonl-test.json").read_text()) == report
    records = read(run / "eval" / "jsonl-test.predictions.jsonl")
    assert [record["prompt"] for record in records] == ["a b", "c d", "e f"]
    assert records[0]["references"] == ["one", "three"]
    assert report["examples"] == 3
    assert report["unfinished"] == sum(not record["finished"] for record in records)
    assert report["adapter"][0]["name"] == "lora"
    assert {"BLEU-4", "ROUGE-L"} <= report["scores"].keys()
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert not list((run / "eval").glob("*.partial.jsonl"))


@pytest.mark.skipif(ptb_program.archive() is None, reason="the official tokenizer is not here")
def test_the_report_says_whose_treebank_tokens_were_counted(run):
    ours, official = evaluate(run), evaluate(run, ["eval.official=true"])
    assert (ours["treebank_tokens"], official["treebank_tokens"]) == ("peftkit", ptb_program.NAME)
    assert official["scores"] == pytest.approx(ours["scores"])


def test_the_base_answers_otherwise_and_is_written_apart(run):
    evaluate(run)
    report = evaluate(run, base=True)
    assert report["adapter"] is None
    adapted = read(run / "eval" / "jsonl-test.predictions.jsonl")
    base = read(run / "eval" / "jsonl-test-base.predictions.jsonl")
    assert [record["prediction"] for record in adapted] != [record["prediction"] for record in base]


def test_a_recipe_is_scored_without_an_adapter(run, recipe, tmp_path):
    bare = evaluate(recipe, limit=2)
    assert (bare["adapter"], bare["examples"], bare["limit"]) == (None, 2, 2)
    assert evaluate(recipe)["scores"] == evaluate(run, base=True)["scores"]
    evaluate(recipe.model_copy(update={"output": str(tmp_path / "out")}), limit=1)
    assert (tmp_path / "out" / "eval" / "jsonl-test-base.json").is_file()


def test_a_second_evaluation_gives_the_same(run):
    first = evaluate(run)
    before = (run / "eval" / "jsonl-test.predictions.jsonl").read_bytes()
    assert evaluate(run)["scores"] == first["scores"]
    assert (run / "eval" / "jsonl-test.predictions.jsonl").read_bytes() == before


def test_written_answers_are_taken_up_unless_something_they_depend_on_has_changed(run, recipe):
    whole = evaluate(run)
    path = run / "eval" / "jsonl-test.partial.jsonl"
    kept = run / "eval" / "kept.jsonl"

    class StoppedError(Exception):
        pass

    def stop(*counts):
        if counts[0] == 3:
            path.rename(kept)
            raise StoppedError

    with pytest.raises(StoppedError):
        evaluate(run, on_progress=stop)
    (key,) = map(json.loads, kept.read_text().splitlines())
    answers = [[index, "one", [9], True, False] for index in range(3)]
    taken = {"chunk": 0, "wall_s": 1.0, "answers": answers}
    path.write_text(json.dumps(key) + "\n" + json.dumps(taken) + "\n" + '{"chunk": 1, "wal')
    assert evaluate(run)["generated_tokens"] == 3
    path.write_text(json.dumps({"key": "another"}) + "\n" + json.dumps(taken) + "\n")
    assert evaluate(run)["scores"] == whole["scores"]


def test_an_answer_to_one_prompt_is_the_one_of_the_evaluation(run):
    evaluate(run)
    record = read(run / "eval" / "jsonl-test.predictions.jsonl")[1]
    assert answer(run, record["prompt"]) == record["prediction"]
    base = evaluate(run, base=True, limit=1) and read(run / "eval" / "jsonl-test-base.predictions.jsonl")[0]
    assert answer(run, base["prompt"], base=True) == base["prediction"]


def test_a_prompt_longer_than_the_context_keeps_its_end_and_is_counted(run, recipe, tmp_path, caplog):
    folder = tmp_path / "long"
    folder.mkdir()
    rows = [{"prompt": "x" * 300 + " a b", "completion": "one"}, {"prompt": "c d", "completion": "two"}]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    dataset = recipe.dataset.model_copy(update={"path": str(folder)})
    report = evaluate(recipe.model_copy(update={"dataset": dataset}))
    assert report["shortened_prompts"] == 1
    assert "1 of 2 prompts lost their beginning" in caplog.text


def test_faults_are_told_before_anything_is_generated(run, recipe, tmp_path):
    with pytest.raises(PeftkitError, match="limit is 0"):
        evaluate(run, limit=0)
    with pytest.raises(PeftkitError, match=r"'tset' is not a split\. Did you mean 'test'"):
        evaluate(run, split="tset")
    with pytest.raises(PeftkitError, match="validation"):
        evaluate(run, split="validation")
    with pytest.raises(PeftkitError, match="not a run folder"):
        evaluate(tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    with pytest.raises(PeftkitError, match="has no adapter"):
        evaluate(tmp_path)
    generation = recipe.generation.model_copy(update={"max_new_tokens": 128})
    with pytest.raises(PeftkitError, match="128 positions in all"):
        evaluate(recipe.model_copy(update={"generation": generation}))
    assert not (run / "eval").exists()
