"""The command line where nothing of POSIX is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("hidden_modules.py")


def hidden(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


def test_a_recipe_is_checked_and_trained_without_posix(tmp_path: Path) -> None:
    short = ("train.max_steps=2", "train.device=cpu")
    done = hidden("validate", "quickstart", "+", "train", "quickstart", *short, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    # Nothing locks there, which is told; and what is measured is this process, not a zero.
    assert "this system has no flock" in done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["peak_memory_bytes"] > 10**8
    assert (tmp_path / "run" / "adapter" / "adapter.safetensors").is_file()


def test_what_is_hidden_is_missed(tmp_path: Path) -> None:
    """The package asks for what is hidden: without the hiding each of these is there, and with it none is."""
    names = "fcntl", "resource"
    ask = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import psutil, hidden_modules; {{}}" + (
        "from peftkit import machine, posix; print(posix.FOLDERS_OPEN, machine._status('VmHWM') is not None, "
        + ", ".join(f"posix.{name} is not None" for name in names)
        + ", machine.resident_memory() > 10**7, machine.cores() > 0)"
    )
    for hiding, found in (("", "True"), ("hidden_modules.hide(); ", "False")):
        done = subprocess.run(
            [sys.executable, "-c", ask.format(hiding)], capture_output=True, text=True, env=dict(os.environ)
        )
        expected = [found if sys.platform == "linux" else "False"] * 4 + ["True"] * 2
        assert done.stdout.split() == expected, done.stderr
