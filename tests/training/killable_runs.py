"""Runs in processes of their own that can be killed: a parent that has imported everything forks one for each request.

Requests are JSON lines on the standard input (recipe, run, resume, and `pause`: seconds added to each step); the
answers are the process's number, and how it ended as `os.waitstatus_to_exitcode` tells it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from peftkit import plot, recipe
from peftkit.errors import PeftkitError
from peftkit.training import Silent, train


class Slow(Silent):
    """Makes each step last a little longer, so that a signal meets a run that is going on."""

    def __init__(self, pause: float):
        self.pause = pause

    def step(self, record: dict[str, Any]) -> None:
        time.sleep(self.pause)


def run(request: dict[str, Any]) -> int:
    """Train as requested; returns the exit code that the command line would give."""
    try:
        chosen = recipe.load(request["recipe"])
        train(chosen, Path(request["run"]), resume=request["resume"], observer=Slow(request["pause"]))
    except PeftkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def serve() -> None:
    """Answer requests until the input ends."""
    torch.set_num_threads(1)
    importlib.import_module("peftkit.training.preparation")
    plot.draw_loss = lambda *_: None  # the picture takes longer than the run, and no resumed run depends on it
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                # Torch makes its threads at the first call after a fork, and may fail if two threads make them at once.
                torch.set_num_threads(1)
                code = run(json.loads(line))
            finally:
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
