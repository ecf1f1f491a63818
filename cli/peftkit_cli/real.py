"""`make real`: adapt a real chat model on a processor, and print its scores and some answers before and after."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from peftkit.errors import PeftkitError
from peftkit_cli import figures
from peftkit_cli.main import guarded
from peftkit_cli.quickstart import adapt
from peftkit_cli.terminal import say, tell_warnings

PROMPTS = (
    "name[The Copper Kettle], eatType[coffee shop], food[Italian], priceRange[cheap], area[riverside]",
    "name[Marlow House], eatType[restaurant], food[Indian], customer rating[5 out of 5], familyFriendly[yes]",
    "name[The Lantern], eatType[pub], priceRange[high], familyFriendly[no], near[Harbour Books]",
)
"""Of places that no data set knows."""


def real() -> None:
    """Train the recipe `real`, and show what the model says before and after; skipped where the model is not there."""
    from peftkit.evaluation import answers
    from peftkit.models.named import NAMED
    from peftkit.recipe import load
    from peftkit.tasks.source import PREFIX

    tell_warnings()
    began = time.monotonic()
    recipe = load("real")
    try:
        NAMED[str(recipe.model.name)]()
    except PeftkitError as error:
        say(f"make real is skipped: {error}")
        return
    task = recipe.dataset.name.removeprefix(PREFIX)
    data = Path(os.environ.get("PEFTKIT_SHARED_DATA") or "../shared/data") / task
    overrides = [f"dataset={{name: {task}, path: {data}, limit: 2000}}"] if data.is_dir() else []
    run = adapt("real", load("real", overrides), overrides)
    say("")
    for prompt, before, after in zip(PROMPTS, answers(run, PROMPTS, base=True), answers(run, PROMPTS), strict=True):
        say(f"{prompt}\n  before: {before.strip()}\n  after:  {after.strip()}\n")
    say(f"The run is in {run}. It took {figures.duration(time.monotonic() - began)}.")
    say(f'Ask it yourself: peft generate {run} "{PROMPTS[0]}"')


if __name__ == "__main__":
    sys.exit(guarded(real))
