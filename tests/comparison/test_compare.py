"""A whole comparison on the bundled model: figures are those of the runs, and what is finished is not run again."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from forked import Forking

from peftkit import files, lock, tensor_file
from peftkit.comparison import compare, runs
from peftkit.errors import PeftkitError
from peftkit.recipe import load


class Recorder:
    """Remembers which runs were begun and how they ended."""

    def __init__(self):
        self.begun, self.failures = [], []

    def began(self, run, position, count):
        self.begun.append(run.label)

    def waited(self, run):
        pass

    def ended(self, run, seconds):
        if run.failure:
            self.failures.append(run.failure)


def keys(**compare_keys):
    return {
        "model": "bundled/tiny",
        "method": "lora",
        "dataset": {"name": "bundled/e2e", "limit": 16},
        "train": {"max_steps": 4, "batch_examples": 2},
        "eval": {"limit": 2},
        "generation": {"max_new_tokens": 4},
        "compare": compare_keys,
    }


@pytest.fixture(scope="module", autouse=True)
def _forked(server):
    """Start the first run as `python -m` does, and fork the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "subprocess", Forking(server, started=1))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A comparison of two methods that train, one that the model does not suit, and one that breaks down."""
    folder = tmp_path_factory.mktemp("comparison") / "all"
    methods = ["lora", "prompt-tuning", "bitfit", {"ssf": {"learning_rate": 1e30}}]
    recorder = Recorder()
    result = compare(load(keys(methods=methods)), folder, recorder)
    return folder, result, recorder


def test_every_row_holds_the_figures_of_its_run(folder):
    place, result, recorder = folder
    assert recorder.begun == ["base", "lora, seed 42", "prompt-tuning, seed 42", recorder.begun[3]]
    rows = {row.label: row for row in result.entries}
    for name in ("lora", "prompt-tuning"):
        run = place / "runs" / name / "seed-42"
        summary = files.read_json(run / "summary.json")
        (report,) = (files.read_json(path) for path in (run / "eval").glob("*-test.json"))
        assert rows[name].trainable == summary["trainable_parameters"]
        assert rows[name].stored == sum(
            t.numel() for t in tensor_file.read_tensors(run / "adapter/adapter.safetensors").values()
        )
        assert {key: value.mean for key, value in rows[name].scores.items()} == report["scores"]
        assert rows[name].validation.mean == summary["losses"]["validation"]
        assert rows[name].memory == summary["peak_memory_bytes"]
        assert len(rows[name].losses) == 4
    assert result.base.scores
    assert result.reference == "lora"


def test_methods_see_the_same_texts_in_the_same_order(folder):
    """Both runs count the same trained tokens in every step, though one of them reads a prompt before each text."""
    place, _, _ = folder
    logs = []
    for name in ("lora", "prompt-tuning"):
        lines = (place / "runs" / name / "seed-42" / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line)["trained_tokens"] for line in lines])
    assert logs[0] == logs[1]
    assert len(set(logs[0])) > 1


def test_what_has_no_figures_says_why(folder):
    _, result, recorder = folder
    reasons = {row.label: row.reason for row in result.entries if row.reason}
    assert "bias" in reasons["bitfit"]
    (broken,) = (reason for label, reason in reasons.items() if label.startswith("ssf"))
    assert re.search(r"(loss|gradient norm) is (nan|inf)", broken)
    assert "exit code 2" in broken
    assert len(recorder.failures) == 1


def test_the_files_hold_the_table(folder):
    place, result, _ = folder
    with (place / "comparison.csv").open(newline="") as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    assert set(table) == {"base", *(row.label for row in result.entries)}
    lora = next(row for row in result.entries if row.label == "lora")
    assert int(float(table["lora"]["stored"])) == lora.stored
    assert float(table["lora"]["BLEU-1"]) == pytest.approx(lora.scores["BLEU-1"].mean, rel=1e-9)
    assert table["bitfit"]["stored"] == ""
    assert (place / "comparison.png").read_bytes().startswith(b"\x89PNG")
    text = (place / "comparison.md").read_text()
    assert f"| {lora.stored:,} |" in text
    page = (place / "comparison.html").read_text()
    assert f"<td>{lora.stored:,}</td>" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page), "the page needs no other file"


def test_a_second_time_only_what_is_missing_is_run(folder):
    place, _, _ = folder
    recipe = load(keys(methods=["lora", "prompt-tuning"]))
    recorder = Recorder()
    compare(recipe, place, recorder)
    assert recorder.begun == []
    evaluation = next((place / "runs/lora/seed-42/eval").glob("*-test.json"))
    before = files.read_json(evaluation)["scores"]
    evaluation.unlink()
    result = compare(recipe, place, recorder)
    assert recorder.begun == ["lora, seed 42"]
    assert files.read_json(evaluation)["scores"] == before
    assert {row.label for row in result.entries} == {"lora", "prompt-tuning"}


def test_another_recipe_does_not_mix_with_the_runs_there(folder):
    place, _, _ = folder
    changed = keys(methods=["lora"])
    changed["train"]["max_steps"] = 5
    with pytest.raises(PeftkitError, match=r"train\.max_steps was 4 and is 5 now"):
        compare(load(changed), place, Recorder())


def test_a_comparison_that_is_stopped_goes_on_where_it_was(server, tmp_path):
    """The comparison and its runs are processes of their own, which are forked and not started."""
    recipe = tmp_path / "stopped.yaml"
    content = keys(methods=["lora"])
    content["train"]["max_steps"] = 400
    recipe.write_text(json.dumps(content))
    command = [sys.executable, "-m", "peftkit_cli", "compare", str(recipe), "--output", str(tmp_path / "out")]
    told = (tmp_path / "told.txt").open("w")
    process = server.start(command, stderr=told)
    log = tmp_path / "out/runs/lora/seed-42/log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, err = process.wait(), Path(told.name).read_text()
    assert code == 130, err
    assert "The same command continues it" in err
    assert list((log.parent / "checkpoints").glob("step-*"))
    steps = log.read_bytes().count(b"\n")
    assert 3 <= steps < 400
    assert (tmp_path / "out/comparison.md").is_file()
    begun = log.read_text().splitlines()[:steps]
    process = server.start(command)
    while process.poll() is None and log.read_bytes().count(b"\n") <= steps:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert log.read_text().splitlines()[:steps] == begun


@pytest.mark.thorough
def test_a_comparison_that_is_killed_goes_on_to_the_same_table(server, tmp_path):
    """Its run ends with it; while it goes on a second one in the folder is refused."""
    recipe = tmp_path / "killed.yaml"
    content = keys(methods=["lora"])
    content["train"]["max_steps"] = 60
    recipe.write_text(json.dumps(content))

    def start(name):
        command = [sys.executable, "-m", "peftkit_cli", "compare", str(recipe), "--output", str(tmp_path / name)]
        return server.start(command, stderr=(tmp_path / "told.txt").open("w"))

    assert start("whole").wait() == 0
    process = start("out")
    log = tmp_path / "out/runs/lora/seed-42/log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        time.sleep(0.02)
    training = int((log.parent / lock.NAME).read_text())
    for number in (process.pid, training):
        os.kill(number, signal.SIGSTOP)
    with pytest.raises(PeftkitError, match=f"out is in use: process {process.pid} is comparing in it"):
        compare(load(content), tmp_path / "out", Recorder())
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    os.kill(training, signal.SIGCONT)
    while (log.parent / lock.NAME).exists():
        time.sleep(0.05)
    assert not (log.parent / "summary.json").exists()
    assert start("out").wait() == 0, (tmp_path / "told.txt").read_text()
    assert table(tmp_path / "out") == table(tmp_path / "whole")


def table(folder):
    """Return the figures of a comparison, without clocks and memory."""
    with (folder / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if not re.search("memory|step_s", key)} for row in rows]


def test_of_two_processes_in_one_run_folder_one_is_refused(server, tmp_path):
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(json.dumps({key: value for key, value in keys().items() if key != "compare"}))
    command = [sys.executable, "-m", "peftkit_cli", "train", str(recipe), "--output", str(run)]
    said = [(tmp_path / f"{number}.txt").open("w") for number in (0, 1)]
    codes = [process.wait() for process in [server.start(command, stderr=each) for each in said]]
    assert sorted(codes) == [0, 2]
    told = Path(said[codes.index(2)].name).read_text()
    assert re.search(r"run is in use: process \d+ is training in it|already holds", told)
    assert (run / "summary.json").is_file()
