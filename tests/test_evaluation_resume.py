"""Evaluations killed at random moments go on to the same predictions and scores."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from draw import thorough
from model_folders import write_model

from peftkit.adaptation import attach, save_adapter
from peftkit.errors import PeftkitError
from peftkit.evaluation import evaluate
from peftkit.generation.asking import BATCHES
from peftkit.models.load import load as load_model
from peftkit.recipe import load as load_recipe

TURNS = [0, 1, 2, *map(thorough, range(3, 20))]
SEED = int(os.environ.get("PEFTKIT_KILLS_SEED") or random.randrange(10**6))
CHUNKS = 4
PAUSE = 0.02


class Evaluations:
    """Starts evaluations in processes of their own, one at a time."""

    def __init__(self) -> None:
        root = Path(__file__).resolve().parents[1]
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killable_evaluations.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root / 'core'}:{root / 'cli'}"},
        )

    def start(self, run: Path, pause: float = 0.0) -> int:
        """Begin an evaluation; returns its process number."""
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps({"run": str(run), "pause": pause}) + "\n")
        self.server.stdin.flush()
        return self.end()

    def end(self) -> int:
        """Wait for the evaluation; returns its exit code, negative for a signal that ended it."""
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())


@pytest.fixture(scope="module")
def evaluations() -> Iterator[Evaluations]:
    found = Evaluations()
    yield found
    assert found.server.stdin is not None
    found.server.stdin.close()
    found.server.wait()


def make_run(folder: Path) -> Path:
    """Write a run whose evaluation takes several chunks, with drawn tokens, which an interruption must not move."""
    data = folder / "data"
    data.mkdir(parents=True)
    rows = [{"prompt": "ab c" * (number % 5 + 1) + f" {number}", "completion": "one"} for number in range(CHUNKS * 16)]
    (data / "test.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    recipe = load_recipe(
        {
            "model": str(write_model(folder / "model")),
            "method": "lora",
            "dataset": {"name": "jsonl", "path": str(data)},
            "train": {"device": "cpu"},
            "eval": {"batch_size": 2},
            "generation": {"max_new_tokens": 4, "do_sample": True},
        }
    )
    loaded = load_model(recipe.model)
    adaptation = attach(loaded.model, recipe.methods())
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.normal_()
    run = folder / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    save_adapter(adaptation, run / "adapter", {"name": loaded.name, "fingerprint": loaded.fingerprint})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("resumed"))


@pytest.fixture(scope="module")
def whole(evaluations: Evaluations, run: Path) -> tuple[bytes, dict]:
    """Predictions and scores of the evaluation that nobody disturbed."""
    evaluations.start(run)
    assert evaluations.end() == 0
    return outcome(run)


def outcome(run: Path) -> tuple[bytes, dict]:
    report = json.loads((run / "eval" / "jsonl-test.json").read_text())
    return (run / "eval" / "jsonl-test.predictions.jsonl").read_bytes(), report["scores"]


def wait_for_lines(path: Path, count: int) -> None:
    """Return as soon as the file has so many lines."""
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, f"{count} lines did not come"
        time.sleep(0.002)


@pytest.mark.parametrize("turn", TURNS)
def test_a_killed_evaluation_ends_with_the_same_files(
    turn: int, evaluations: Evaluations, run: Path, whole: tuple[bytes, dict]
):
    assert len(whole[0].splitlines()) == BATCHES * 2 * CHUNKS
    for path in (run / "eval").iterdir():
        path.unlink()
    chance = random.Random(f"{SEED}/{turn}")
    partial = run / "eval" / "jsonl-test.partial.jsonl"
    written = 0
    for _ in range(2):
        process = evaluations.start(run, PAUSE)
        wait_for_lines(partial, max(written, 1) if written == CHUNKS else written + 1)
        time.sleep(chance.random() * PAUSE * 20)
        os.kill(process, (signal.SIGKILL, signal.SIGTERM)[turn % 2])
        assert evaluations.end() < 0
        written = min(partial.read_bytes().count(b"\n"), CHUNKS)
        assert written
    evaluations.start(run)
    assert evaluations.end() == 0
    assert outcome(run) == whole
    assert not partial.exists()


def test_a_second_evaluation_of_a_split_is_refused_while_the_first_goes_on(
    evaluations: Evaluations, run: Path, whole: tuple[bytes, dict]
):
    for path in (run / "eval").iterdir():
        path.unlink()
    process = evaluations.start(run, PAUSE)
    wait_for_lines(run / "eval" / "jsonl-test.partial.jsonl", 2)
    with pytest.raises(PeftkitError, match=f"jsonl-test in .*eval is being evaluated: process {process} answers it"):
        evaluate(run)
    assert evaluations.end() == 0
    assert outcome(run) == whole
    (run / "eval" / ".jsonl-test.json.0a1b2c3d.tmp").write_text("half")
    (run / "eval" / ".jsonl-test-base.json.0a1b2c3d.tmp").write_text("of another evaluation")
    evaluate(run)
    assert [path.name for path in (run / "eval").glob(".*")] == [".jsonl-test-base.json.0a1b2c3d.tmp"]
