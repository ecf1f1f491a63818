"""Our side of the training benchmark in two checkouts, turn by turn: `--against FOLDER`.

    python benchmarks/interleaved.py --against ../before --profiles e2e,e2e-grouped,gsm8k,coqa --rounds 5

Each turn is one run of `benchmarks/training.py --sides ours` in each checkout, one after the other; ratios are medians
of the ratios within a turn: of step time (on the processor), and of the memory above the model. `--first-step` times
instead `peft train` of one step on the 60 M model, from the start of the process to its end.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from estimate import write_model, write_recipe

HERE = Path(__file__).resolve().parents[1]


def run(checkout: Path, arguments: list[str]) -> dict[str, float]:
    """Run the benchmark of a checkout; return the seconds of a step and the bytes above the model."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        paths = os.pathsep.join(str(checkout / name) for name in ("core", "cli"))
        done = subprocess.run(
            [sys.executable, str(checkout / "benchmarks/training.py"), *arguments, "--csv", str(table)],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{checkout}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        with table.open(encoding="utf-8") as file:
            row = next(iter(csv.DictReader(file)))
    return {"seconds": float(row["step_s"]), "above": float(row["above"] or 0), "limit": float(row["limit"])}


def first_step(checkout: Path, recipe: Path, output: Path) -> float:
    """Train one step by a checkout; return the processor's seconds of the whole process."""
    paths = os.pathsep.join(str(checkout / name) for name in ("core", "cli"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "peftkit_cli", "train", str(recipe), "train.max_steps=1", "--output", str(output)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{checkout}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_steps(against: Path, rounds: int) -> None:
    """Print the medians of both checkouts, and of the difference within a turn."""
    with tempfile.TemporaryDirectory() as folder:
        root, turns = Path(folder), []
        recipe = write_recipe(root, write_model(root, "60M"))
        for number in range(rounds):
            pair = [HERE, against]
            order = pair if number % 2 else pair[::-1]
            seconds = {checkout: first_step(checkout, recipe, root / f"{number}-{checkout.name}") for checkout in order}
            turns.append([seconds[checkout] for checkout in pair])
    here, there = (statistics.median(column) for column in zip(*turns, strict=True))
    grown = statistics.median(a - b for a, b in turns)
    print(
        f"peft train of one step, 60M: {here:.2f} s here, {there:.2f} s there, {grown:+.2f} s within a turn", flush=True
    )


def main() -> None:
    """Print a line for each profile, method and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="another checkout of the project")
    parser.add_argument("--profiles", default="e2e,e2e-grouped,gsm8k,coqa")
    parser.add_argument("--methods", default="lora")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--sizes", default="60m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a turn")
    parser.add_argument("--first-step", action="store_true", help="time one step of `peft train` instead")
    given = parser.parse_args()
    if given.first_step:
        first_steps(given.against.resolve(), given.rounds)
        return
    for profile in given.profiles.split(","):
        for method in given.methods.split(","):
            for precision in given.precision.split(","):
                arguments = ["--profiles", profile, "--methods", method, "--precision", precision]
                arguments += ["--sizes", given.sizes, "--sides", "ours", "--rounds", str(given.steps)]
                turns = []
                for number in range(given.rounds):
                    pair = [HERE, given.against.resolve()]
                    order = pair if number % 2 else pair[::-1]
                    results = {checkout: run(checkout, arguments) for checkout in order}
                    turns.append([results[checkout] for checkout in pair])
                time, memory = (statistics.median(a[key] / b[key] for a, b in turns) for key in ("seconds", "above"))
                limit = statistics.median(a["limit"] for a, _ in turns)
                print(
                    f"{profile} {method} {precision}: step {time:.3f} of the other's, memory above the model "
                    f"{memory:.3f}, {limit:.2f} times the limit",
                    flush=True,
                )


if __name__ == "__main__":
    main()
