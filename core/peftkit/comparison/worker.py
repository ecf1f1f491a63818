"""`python -m peftkit.comparison.worker RECIPE RUN [--base]`: one run of a comparison, in a process of its own.

It trains, or continues, and evaluates. A process for each run keeps their peak memory apart, and the model of one from
the random state of another. Exit codes are those of `peft`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from peftkit import lock
from peftkit.errors import PeftkitError
from peftkit.evaluation import evaluate
from peftkit.recipe import load
from peftkit.training import train

POLL_SECONDS = 0.2
PATIENCE = 60.0
"""Seconds that the process of a comparison which was killed may take to end."""


def main(recipe_file: str, run_folder: str, base: bool) -> int:
    """Train and evaluate the recipe into the run folder; with `base` evaluate its untrained model there."""
    recipe, run = load(recipe_file), Path(run_folder)
    if base:
        _patiently(lambda: evaluate(recipe.model_copy(update={"output": str(run)})))
        return 0
    _patiently(lambda: train(recipe, run, resume=(run / "recipe.yaml").is_file()))
    _patiently(lambda: evaluate(run, split=recipe.eval.split, limit=recipe.eval.limit))
    return 0


def _patiently(work: Callable[[], object]) -> None:
    """Do the work once no other process has the folder."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            work()
        except lock.BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return


def end_with(parent: int) -> None:
    """Stop this process as a signal does, which writes a checkpoint, once `parent` is not its parent any more."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with(os.getppid())
    try:
        sys.exit(main(sys.argv[1], sys.argv[2], "--base" in sys.argv[3:]))
    except PeftkitError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
