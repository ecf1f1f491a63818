"""`make quickstart`: train the shipped quickstart recipe, score the model before and after, and print both."""

from __future__ import annotations

import itertools
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit_cli import figures, streams
from peftkit_cli.arguments import run_folder
from peftkit_cli.main import guarded
from peftkit_cli.terminal import print_unavailable, progress, say, table, tell_warnings
from peftkit_cli.train import run_recipe

if TYPE_CHECKING:
    from peftkit.recipe import Recipe


def quickstart() -> None:
    """Train the quickstart recipe, and print the scores of the model before and after."""
    from peftkit.recipe import load

    tell_warnings()
    began = time.monotonic()
    run = adapt("quickstart", load("quickstart"))
    say(f"\nThe run is in {run}. It took {figures.duration(time.monotonic() - began)}.")
    say(f'Ask it yourself: peft generate {run} "name[The Hidden Gate], eatType[coffee shop], food[Japanese]"')


def adapt(name: str, recipe: Recipe, overrides: Sequence[str] = ()) -> Path:
    """Train, evaluate the base and the adapted model, and print the scores side by side; returns the run folder.

    `overrides` are what was set on the recipe called `name`, for a person to do the same.
    """
    from peftkit.evaluation import evaluate

    run = free(run_folder(name, recipe))
    say(f"$ {shlex.join(['peft', 'train', name, *overrides, '--output', str(run)])}")
    run_recipe(recipe, run)
    say(f"\n$ peft eval {run} --base\n$ peft eval {run}\n")
    with progress("answering without the adapter") as on_progress:
        before = evaluate(run, base=True, on_progress=on_progress)
    with progress("answering with the adapter") as on_progress:
        after = evaluate(run, on_progress=on_progress)
    rows = [(name, float(before["scores"][name]), float(after["scores"][name])) for name in after["scores"]]
    title = f"{after['dataset']}, {after['split']} split, {after['examples']:,} inputs"
    table(("metric", "before", "after"), rows, title)
    print_unavailable(after["unavailable"])
    return run


def free(run: Path) -> Path:
    """Return `run`, or its first numbered sibling that does not exist: an earlier run is left as it is."""
    numbered = (run.with_name(f"{run.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([run], numbered) if not path.exists())


if __name__ == "__main__":
    streams.prepare()
    sys.exit(guarded(quickstart))
