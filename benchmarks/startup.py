"""How fast `peft --help` answers, that `peft validate` opens no weights, and how long a run takes to its first step.

Run it as `python benchmarks/startup.py [ROUNDS]`. Both starts are timed in turns, so that whatever else the machine
does falls on both; the medians are compared. At most 0.3 s more than Python alone is allowed; the exit code tells.
The first step is one over the 42,061 examples of the E2E training split, at first with nothing kept (cold), then with
what that start kept (warm): `PEFTKIT_SHARED_DATA`, or else `../shared/data`, holds its official files in `e2e`.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "core"), str(ROOT / "cli")))}
BARE = (sys.executable, "-c", "pass")
HELP = (sys.executable, "-m", "peftkit_cli", "--help")
TARGET = 0.3
FIRST_STEP = {"cold": 20.0, "warm": 8.0}
"""Seconds on two idle cores."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
WATCHED = f"""
import sys
import safetensors
opened = []
def note(path):
    if str(path).endswith({WEIGHTS!r}):
        opened.append(str(path))
def watch(event, arguments):
    if event == "open":
        note(arguments[0])
safe_open = safetensors.safe_open
def noted(path, *rest, **named):
    note(path)
    return safe_open(path, *rest, **named)
sys.addaudithook(watch)
safetensors.safe_open = noted
from peftkit_cli.main import main
code = main(sys.argv[1:])
print("OPENED", *opened, file=sys.stderr)
sys.exit(code)
"""
"""`peft` where every opening of weights is noted: Python's by an audit hook, safetensors' Rust code by its name."""


def seconds(command: tuple[str, ...]) -> tuple[float, float]:
    """Return the time of a command from the start of its process to its end, and its time on the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(command, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    passed = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def time_help(rounds: int) -> float:
    """Print the medians of both starts and return the difference of their times in seconds."""
    for command in (BARE, HELP):  # the first start reads from the disk and compiles
        seconds(command)
    pairs = [(*seconds(BARE), *seconds(HELP)) for _ in range(rounds)]
    bare, bare_busy, helped, helped_busy = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"medians of {rounds} rounds       time    on the processor")
    print(f"python alone            {bare:.3f} s   {bare_busy:.3f} s")
    print(f"peft --help             {helped:.3f} s   {helped_busy:.3f} s")
    print(f"difference              {helped - bare:.3f} s   {helped_busy - bare_busy:.3f} s   (at most {TARGET} s)")
    return helped - bare


def opened_weights(*arguments: str) -> list[str]:
    """Return the files of weights that a `peft` command opens."""
    command = (sys.executable, "-c", WATCHED, *arguments)
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    if done.returncode or not last.startswith("OPENED"):
        sys.exit(f"peft {' '.join(arguments)} failed: {done.stderr}")
    return last.split()[1:]


def time_first_step() -> None:
    """Print how long the first step of a run on the E2E set takes, cold and warm."""
    from loading import measure

    data = Path(os.environ.get("PEFTKIT_SHARED_DATA") or ROOT.parent / "shared" / "data") / "e2e"
    if not data.is_dir():
        print(f"first step on E2E: left out, there are no files at {data}")
        return
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        for start, target in FIRST_STEP.items():
            passed, busy, peak = measure("ours", data, Path(folder))
            figures = f"{passed:.1f} s   {busy:.1f} s on the processors   {peak / 1e9:.2f} GB"
            print(f"first step on E2E, {start}  {figures}   (at most {target:g} s on two idle cores)", flush=True)


def main() -> int:
    """Measure and print them; return the exit code."""
    difference = time_help(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
    opened = opened_weights("validate", str(ROOT / "recipes" / "quickstart.yaml"))
    print(f"peft validate recipes/quickstart.yaml opened {len(opened)} files of weights", *opened)
    time_first_step()
    return int(difference > TARGET or bool(opened))


if __name__ == "__main__":
    sys.exit(main())
