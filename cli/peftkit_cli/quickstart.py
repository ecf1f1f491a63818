"""`make quickstart`: train the shipped quickstart recipe, score the model before and after, and print both."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

from peftkit_cli import figures, streams
from peftkit_cli.arguments import run_folder
from peftkit_cli.main import guarded
from peftkit_cli.terminal import print_unavailable, progress, say, table, tell_warnings
from peftkit_cli.train import run_recipe


def quickstart() -> None:
    """Train, evaluate the base and the adapted model on the test split, and print the scores side by side."""
    from peftkit.evaluation import evaluate
    from peftkit.recipe import load

    tell_warnings()
    began = time.monotonic()
    recipe = load("quickstart")
    run = free(run_folder("quickstart", recipe))
    say(f"$ peft train quickstart --output {run}")
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
    say(f"\nThe run is in {run}. It took {figures.duration(time.monotonic() - began)}.")
    say(f'Ask it yourself: peft generate {run} "name[The Hidden Gate], eatType[coffee shop], food[Japanese]"')


def free(run: Path) -> Path:
    """Return `run`, or its first numbered sibling that does not exist: an earlier run is left as it is."""
    numbered = (run.with_name(f"{run.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([run], numbered) if not path.exists())


if __name__ == "__main__":
    streams.prepare()
    sys.exit(guarded(quickstart))
