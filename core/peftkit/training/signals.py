"""Interrupts that wait for the end of an optimizer step, so that a stopped run can be continued."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from peftkit.errors import PeftkitError

HANDLED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(PeftkitError):  # noqa: N818
    """A run stopped by a signal after its checkpoint was written; the exit code is 128 + the signal's number."""

    def __init__(self, number: int, checkpoint: Path, step: int):
        name = signal.Signals(number).name
        super().__init__(
            f"stopped by {name} after step {step}; the checkpoint is {checkpoint}. "
            "Continue with the same command and --resume."
        )
        self.signal = number
        self.checkpoint = checkpoint
        self.step = step
        self.exit_code = 128 + number


class Deferred:
    """Holds back SIGINT and SIGTERM while entered: the first is kept in `received`, a second ends the process at once.

    Handlers belong to the main thread; elsewhere nothing is held back. The earlier handlers come back at the exit.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._receive) for number in HANDLED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number
