"""What ends a run early, a signal or a lost output, waits for the end of an optimizer step, so that it can go on."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from peftkit.errors import OutputLost, PeftkitError

HANGUP = getattr(signal, "SIGHUP", None)
"""What the end of a terminal sends, where the system has it."""
HANDLED = (signal.SIGINT, signal.SIGTERM, *([] if HANGUP is None else [HANGUP]))
Cause = int | OutputLost
"""The number of a signal, or what became of the output."""


def told(cause: Cause) -> tuple[str, int]:
    """Return how a run was stopped, as words, and its exit code: 128 + the signal's number, or that of the output."""
    if isinstance(cause, OutputLost):
        return f"stopped, since {cause.reason},", cause.exit_code
    return f"stopped by {signal.Signals(cause).name}", 128 + cause


class Interrupted(PeftkitError):  # noqa: N818
    """A run stopped by a signal, or as its output was lost, after its checkpoint was written."""

    def __init__(self, cause: Cause, checkpoint: Path, step: int):
        stopped, self.exit_code = told(cause)
        super().__init__(
            f"{stopped} after step {step}; the checkpoint is {checkpoint}. Continue with the same command and --resume."
        )
        self.cause = cause
        self.checkpoint = checkpoint
        self.step = step


class Deferred:
    """Holds back SIGINT, SIGTERM and SIGHUP while entered: the first is kept, a second ends the process at once.

    Handlers belong to the main thread; elsewhere nothing is held back. The earlier handlers come back at the exit, and
    a SIGHUP that is ignored, as under nohup, stays so.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            chosen = [number for number in HANDLED if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN]
            self._earlier = {number: signal.signal(number, self._receive) for number in chosen}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number
