"""How long each module runs, forward and backward, in what torch's profiler recorded.

The backward time of a module is that of the nodes of autograd's graph that its forward pass made: nodes are numbered
in the order in which they are made, so that the module which ran then is known, whatever its outputs are.
"""

from __future__ import annotations

import bisect
import threading
from collections import defaultdict
from collections.abc import Container, Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd.profiler import record_function

from peftkit.engine.passes import BACKWARD, FORWARD, PACK, REST
from peftkit.profiling.owners import LOSS

DATA = "data"
PHASES = (DATA, PACK, FORWARD, BACKWARD, REST)
"""Of a step: collate, pack the micro-batch, the loss, its gradients, and the optimizer with what is around it."""
NODE = "autograd::engine::evaluate_function: "
"""How torch's profiler names the run of a node of the graph."""


class Ranges:
    """Names the stretches of a step to torch's profiler: modules where they are watched, and phases in an open one."""

    def __init__(self) -> None:
        self._open: list[tuple[str, Any]] = []
        self._marks: list[tuple[int, str]] = []
        self._thread = threading.get_ident()

    def __call__(self, phase: str) -> None:
        """End the phase before and begin another; nothing where none is open."""
        if self._open:
            self.leave()
            self.enter(phase)

    def enter(self, name: str) -> None:
        """Begin a phase, or the module at a path."""
        stretch = record_function(name)
        stretch.__enter__()
        self._open.append((name, stretch))
        self._mark()

    def leave(self) -> None:
        """End what began last."""
        self._open.pop()[1].__exit__(None, None, None)
        self._mark()

    def owner(self, sequence: int) -> str:
        """Return the path of the module that ran when the node of this number was made."""
        at = bisect.bisect_right(self._marks, sequence, key=lambda mark: mark[0]) - 1
        return self._marks[at][1] if at >= 0 else LOSS

    def _mark(self) -> None:
        """Note whose the nodes are that are made from now on; each thread numbers its own."""
        if threading.get_ident() == self._thread:
            name = self._open[-1][0] if self._open else LOSS
            self._marks.append((torch.autograd._get_sequence_nr(), LOSS if name in PHASES else name))


class Times(NamedTuple):
    """Seconds of all watched steps."""

    phases: dict[str, float]
    own: dict[tuple[str, str], float]
    """By path and phase, without those of the modules within it; what no module took is of LOSS."""


def times(events: Iterable[Any], ranges: Ranges, paths: Container[str], cuda: bool = False) -> Times:
    """Add up the events of torch's profiler; on a GPU what its kernels took."""
    phases: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    own: dict[tuple[str, str], float] = defaultdict(float)
    places: dict[int, tuple[str, str]] = {}
    latest = LOSS
    for event in sorted(events, key=lambda event: event.time_range.start):
        node = event.name.startswith(NODE)
        if event.device_type != torch.autograd.DeviceType.CPU or not (
            node or event.name in PHASES or event.name in paths
        ):
            continue
        seconds = (event.device_time_total if cuda else event.cpu_time_total) * 1e-6
        around = event.cpu_parent
        while around is not None and id(around) not in places:
            around = around.cpu_parent
        if node:
            # What adds to a parameter's gradient has no number, and runs at once behind what made it.
            latest = ranges.owner(event.sequence_nr) if event.sequence_nr >= 0 else latest
            place = latest, BACKWARD
        elif event.name in PHASES:
            place = LOSS, event.name
        else:
            place = event.name, places[id(around)][1] if around is not None else BACKWARD
        if around is not None:
            own[places[id(around)]] -= seconds
        else:
            # Nodes of a GPU run in a thread of their own.
            phases[event.name if event.name in PHASES else BACKWARD] += seconds
        places[id(event)] = place
        own[place] += seconds
    return Times(phases, dict(own))
