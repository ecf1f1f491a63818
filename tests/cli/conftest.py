"""How the command-line tests run `peft`: in this process, or as a process of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from peftkit_cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


Peft = Callable[..., Done]


@pytest.fixture
def peft(capsys: pytest.CaptureFixture[str]) -> Peft:
    """Run `peft` in this process; standard input is no terminal."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture
def peft_process(tmp_path: Path) -> Peft:
    """Run `peft` as a process of its own, in an empty folder, with its output piped to the command `reader`."""

    def run(*arguments: object, reader: str = "cat") -> Done:
        command = shlex.join([sys.executable, "-m", "peftkit_cli", *map(str, arguments)])
        paths = os.pathsep.join((str(ROOT / "core"), str(ROOT / "cli")))
        done = subprocess.run(
            ["bash", "-c", f"{command} | {reader}; exit ${{PIPESTATUS[0]}}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A small valid recipe in a file."""
    path = tmp_path / "small.yaml"
    path.write_text(
        "model: bundled/tiny\nmethod: lora\nrank: 4\nquantization: none\ndataset: bundled/e2e\n"
        "train: {max_steps: 2, batch_examples: 4, learning_rate: 0.001}\n",
        encoding="utf-8",
    )
    return path
