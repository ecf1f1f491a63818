"""Processes that take turns: one for each side of a benchmark, of which one runs at a time and the others wait.

The time of a turn is measured in the side's own process, from the word to go to the report of its last step. Memory is
measured apart, in processes that run three steps and nothing beside them: the highest resident size of the process. A
step of a tiny model comes first there, so that code loaded on the way does not count, and the allocator is set to give
large blocks back at once, so that what it would keep does not either. On a GPU memory is what the allocator of a side's
own process held at most in all its turns.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cases import Case
from memory import resident
from sides import SIDES

from peftkit.errors import PeftkitError
from peftkit.models.quiet import quiet

STEPS_OF_MEMORY = 3
LOADED = {
    "cpu": ("torch", "transformers", "transformers.trainer", "peft"),
    "cuda": ("torch", "transformers.models.llama.modeling_llama"),
}
"""What the process that starts the others imports once for all of them: nothing that begins to use a GPU."""
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # or asking whether there is a GPU would begin to use it
MMAP_THRESHOLD = -3
"""glibc's name of the size from which a block is given back at once."""


@dataclass(frozen=True)
class Memory:
    """The peak in bytes: of the whole process, or on the device, and of it what came on top of the loaded model."""

    whole: int
    above: int


@dataclass
class Report:
    """What a side reported: for each step the loss and the norm of the gradient, for each turn its seconds."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    memory: Memory | None = None
    """On a GPU."""


# In a side's own process --------------------------------------------------------------------------------------------


class Turns:
    """A gate that waits for a word before each turn of `steps` steps and answers with its seconds, losses and norms."""

    def __init__(self, pipe: Connection, steps: int, wall: bool, device: str):
        self.pipe, self.steps = pipe, steps
        self.peak = Peak(device) if device != "cpu" else None
        self.clock = time.perf_counter if wall else time.process_time
        self.began = 0.0
        self.reports: list[tuple[float, float]] = []

    def loaded(self) -> None:
        """Note what the loaded model takes of a GPU."""
        if self.peak:
            self.peak.loaded()

    def begin(self) -> None:
        """Say that the side is built, and wait."""
        if self.peak:
            self.peak.begin()
        self.pipe.send(None)
        self._wait()

    def passed(self, loss: float, norm: float) -> None:
        """Take a step's report; at the end of a turn pass it on and wait for the next."""
        self.reports.append((loss, norm))
        if len(self.reports) == self.steps:
            self.pipe.send((self.clock() - self.began, self.reports, self.peak and self.peak.read()))
            self.reports = []
            self._wait()

    def _wait(self) -> None:
        self.pipe.recv()
        self.began = self.clock()


class Unwatched:
    """A gate that never waits."""

    def loaded(self) -> None:
        """Nothing is measured."""

    def begin(self) -> None:
        """Go on."""

    def passed(self, loss: float, norm: float) -> None:
        """Go on."""


class Peak(Unwatched):
    """A gate that never waits and measures memory from the first step on."""

    def __init__(self, device: str):
        self.cuda = device != "cpu"
        self.before = 0

    def loaded(self) -> None:
        """Measure what the loaded model takes."""
        gc.collect()
        self.before = self._now("VmRSS")

    def begin(self) -> None:
        """Count the peak from here on."""
        gc.collect()
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> Memory:
        """Return the peak."""
        highest = self._now("VmHWM")
        return Memory(highest, highest - self.before)

    def _now(self, key: str) -> int:
        if not self.cuda:
            return resident(key)
        import torch

        return torch.cuda.max_memory_allocated() if key == "VmHWM" else torch.cuda.memory_allocated()


def take_turns(case: Case, pipe: Connection, steps: int, wall: bool, threads: int) -> None:
    """Run a side whose turns the other end of the pipe gives."""
    import torch

    torch.set_num_threads(threads)
    try:
        with quiet():
            SIDES[case.side](case, Turns(pipe, steps, wall, case.device))
    except EOFError:
        pass  # who gave the turns has seen enough
    except Exception:
        pipe.send(traceback.format_exc())


def weigh(case: Case, pipe: Connection, threads: int) -> None:
    """Measure the memory of a side."""
    import torch

    torch.set_num_threads(threads)
    try:
        if case.device == "cpu":
            ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 65536)
        gate = Peak(case.device)
        with quiet():
            SIDES[case.side](case.small(), Unwatched())
            SIDES[case.side](replace(case, steps=STEPS_OF_MEMORY), gate)
        pipe.send(gate.read())
    except Exception:
        pipe.send(traceback.format_exc())


class Rate:
    """The operations a second of one matrix product [rows, inputs] x [inputs, outputs], measured now and then."""

    def __init__(self, rows: int, inputs: int, outputs: int, dtype: str, device: str, wall: bool):
        import torch

        kind = getattr(torch, dtype)
        self.one = torch.randn(rows, inputs, device=device).to(kind)
        self.other = torch.randn(outputs, inputs, device=device).to(kind)
        self.operations = 2 * rows * inputs * outputs
        self.clock = time.perf_counter if wall else time.process_time
        self.cuda = device != "cpu"
        self.rates: list[float] = []

    def measure(self) -> None:
        """Run products for about a twentieth of a second and note their rate."""
        for repeats in (3, max(3, int(5e9 // self.operations) * (100 if self.cuda else 1))):
            self._wait()
            began = self.clock()
            for _ in range(repeats):
                self.one @ self.other.T
            self._wait()
            taken = self.clock() - began
        self.rates.append(repeats * self.operations / taken)

    @property
    def median(self) -> float:
        """The median of the rates so far."""
        return statistics.median(self.rates)

    def _wait(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()


# In the process that gives the turns --------------------------------------------------------------------------------


class Player:
    """The process of one side, and the pipe to it; leaving its context ends it."""

    def __init__(self, case: Case, work: Any, *given: Any):
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(LOADED[case.device]))
        self.case = case
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(case, other, *given), daemon=True)
        self.process.start()
        other.close()

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *fault: object) -> None:
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()

    def hear(self) -> Any:
        """Wait for what the side says; a fault there is one here."""
        try:
            said = self.pipe.recv()
        except EOFError:
            self.process.join(10)
            raise PeftkitError(
                f"the side {self.case.side} of {self.case.method} ended with the exit code {self.process.exitcode}: "
                "see above, or it may have been killed for want of memory."
            ) from None
        if isinstance(said, str):
            print(said, file=sys.stderr)
            raise PeftkitError(f"the side {self.case.side} of {self.case.method} failed: {said.splitlines()[-1]}")
        return said


def time_turns(
    cases: Sequence[Case], rounds: int, steps: int, wall: bool, threads: int, between: Any = lambda: None
) -> list[Report]:
    """Give every case a turn in each of `rounds` rounds, after one that is not timed; `between` runs after each."""
    reports = [Report() for _ in cases]
    with ExitStack() as stack:
        players = []
        for case in cases:
            players.append(stack.enter_context(Player(case, take_turns, steps, wall, threads)))
            players[-1].hear()
        for number in range(rounds + 1):
            order = list(zip(players, reports, strict=True))
            for player, reported in order if number % 2 else reversed(order):
                player.pipe.send(None)
                seconds, pairs, reported.memory = player.hear()
                reported.seconds += [seconds / steps] if number else []
                reported.losses += [loss for loss, _ in pairs]
                reported.norms += [norm for _, norm in pairs]
            between()
    return reports


def weigh_sides(cases: Sequence[Case], threads: int) -> list[Memory]:
    """Measure the memory of each case in a process of its own, one after the other."""
    peaks = []
    for case in cases:
        with Player(case, weigh, threads) as player:
            peaks.append(player.hear())
    return peaks
