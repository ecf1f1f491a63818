"""Runs killed at random steps go on to the same losses and the same adapter, bit for bit."""

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
from typing import Any

import pytest
from draw import thorough
from small_runs import make_recipe

from peftkit import lock, recipe
from peftkit.errors import PeftkitError
from peftkit.training import checkpoint, log, train

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
STEPS = 24
TURNS = [0, 1, 2, *map(thorough, range(3, 20))]
SEED = int(os.environ.get("PEFTKIT_KILLS_SEED") or random.randrange(10**6))


class Runs:
    """Starts runs in processes of their own, one at a time."""

    def __init__(self) -> None:
        root = Path(__file__).resolve().parents[2]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root / 'core'}:{root / 'cli'}"}
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killable_runs.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, recipe: dict[str, Any], run: Path, *, resume: bool = False, pause: float = 0.0) -> int:
        """Begin a run; returns its process number."""
        assert self.server.stdin is not None
        request = {"recipe": recipe, "run": str(run), "resume": resume, "pause": pause}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return self._answer()

    def end(self) -> int:
        """Wait for the run; returns its exit code, negative for a signal that ended it."""
        return self._answer()

    def _answer(self) -> int:
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    result = Runs()
    yield result
    assert result.server.stdin is not None
    result.server.stdin.close()
    result.server.wait()


@pytest.fixture(scope="module")
def keys(source: Path) -> dict[str, Any]:
    """Twelve steps an epoch, the last one partial; dropout, and a checkpoint every other step."""
    method = {"lora": {"rank": 2, "dropout": 0.1}}
    train = {"max_steps": STEPS, "batch_examples": 1, "accumulation": 3, "evaluate_every": 5, "save_every": 2}
    return make_recipe(source, method, **train)


@pytest.fixture(scope="module")
def whole(runs: Runs, keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    runs.start(keys, run)
    assert runs.end() == 0
    return run


def wait_for_step(run: Path, step: int) -> None:
    """Return as soon as the log holds `step`."""
    path = run / "log.jsonl"
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < step:
        assert time.monotonic() < deadline, f"step {step} did not come"
        time.sleep(0.002)


def assert_equal(run: Path, whole: Path) -> None:
    """Hold losses, adapter, optimizer and random state of two finished runs to be the same bits."""
    clocks = ("tokens_per_s", "trained_tokens_per_s", "memory", "elapsed_s")
    logs = [
        [{key: value for key, value in record.items() if key not in clocks} for record in log.read(path / "log.jsonl")]
        for path in (run, whole)
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) == STEPS
    last = f"checkpoints/step-{STEPS:08d}"
    for file in ("adapter/adapter.safetensors", *(f"{last}/{part}.safetensors" for part in checkpoint.PARTS)):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file


def kill_and_resume(runs: Runs, keys: dict[str, Any], run: Path, number: signal.Signals, chance: random.Random) -> None:
    """Kill a run with the signal at a random moment, check what it leaves, and take it to its end."""
    process = runs.start(keys, run, pause=0.02)
    wait_for_step(run, chance.randrange(1, STEPS - 6))
    time.sleep(chance.random() * 0.05)
    os.kill(process, number)
    assert runs.end() == CODES[number]
    result = checkpoint.listed(run / "checkpoints")
    for path in result:
        checkpoint.read(path)
    if number != signal.SIGKILL:
        assert result[-1].name == f"step-{len(log.read(run / 'log.jsonl')):08d}"
    runs.start(keys, run, resume=True)
    assert runs.end() == 0


def check(runs: Runs, keys: dict[str, Any], whole: Path, folder: Path, turn: int, seed: int) -> None:
    """One kill: `turn` picks the signal, `seed` the moment."""
    number = SIGNALS[turn % len(SIGNALS)]
    kill_and_resume(runs, keys, folder / "run", number, random.Random(f"{seed}/{turn}"))
    assert_equal(folder / "run", whole)


@pytest.mark.parametrize("turn", TURNS)
def test_killed_run_resumes_bit_for_bit(turn: int, runs: Runs, keys: dict[str, Any], whole: Path, tmp_path: Path):
    check(runs, keys, whole, tmp_path, turn, SEED)


def test_killed_again_and_again_on_one_run(runs: Runs, keys: dict[str, Any], whole: Path, tmp_path: Path):
    run = tmp_path / "run"
    for turn, step in enumerate((3, 8, 13)):
        process = runs.start(keys, run, resume=turn > 0, pause=0.02)
        wait_for_step(run, step)
        os.kill(process, SIGNALS[2 - turn])
        assert runs.end() == CODES[SIGNALS[2 - turn]]
    runs.start(keys, run, resume=True)
    assert runs.end() == 0
    assert_equal(run, whole)


def test_second_signal_ends_at_once(runs: Runs, keys: dict[str, Any], tmp_path: Path):
    process = runs.start(keys, tmp_path / "run", pause=30.0)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "log.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    started = time.monotonic()
    os.kill(process, signal.SIGINT)
    time.sleep(0.1)
    os.kill(process, signal.SIGTERM)
    assert runs.end() == -signal.SIGTERM
    assert time.monotonic() - started < 10


def test_a_second_run_is_refused_until_the_first_is_killed(
    runs: Runs, keys: dict[str, Any], whole: Path, tmp_path: Path
):
    run = tmp_path / "run"
    process = runs.start(keys, run, pause=0.2)
    wait_for_step(run, 3)
    for resume, fault in ((True, f"is in use: process {process} is training in it"), (False, "already holds")):
        with pytest.raises(PeftkitError, match=fault) as refused:
            train(recipe.load(keys), run, resume=resume)
        assert refused.value.exit_code == 2
    os.kill(process, signal.SIGKILL)
    assert runs.end() == -signal.SIGKILL
    assert (run / lock.NAME).exists()
    runs.start(keys, run, resume=True)
    assert runs.end() == 0
    assert_equal(run, whole)
    assert not (run / lock.NAME).exists()
