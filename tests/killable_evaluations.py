"""Evaluations in processes of their own that can be killed: a parent that has imported everything forks one each time.

Requests are JSON lines on the standard input (run, and `pause`: seconds added to each answer); the answers are the
process's number, and how it ended as `os.waitstatus_to_exitcode` tells it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from peftkit.evaluation import evaluate


def serve() -> None:
    """Answer requests until the input ends."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                # Torch makes its threads at the first call after a fork, and may fail if two threads make them at once.
                torch.set_num_threads(1)
                evaluate(Path(request["run"]), on_progress=lambda *_, pause=request["pause"]: time.sleep(pause))
                code = 0
            finally:
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
