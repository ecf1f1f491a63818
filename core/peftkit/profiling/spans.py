"""When each module runs, forward and backward: nested spans of time, from which times of its own follow.

The backward time of a module is that of the nodes of autograd's graph that its forward pass made: nodes are numbered
in the order in which they are made, so that the module which ran then is known, whatever its outputs are.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.engine.passes import BACKWARD, FORWARD
from peftkit.profiling.owners import LOSS, WHOLE


@dataclass
class Span:
    """One stretch of a step: a phase, or a module or one node of its backward pass within a phase."""

    phase: str
    path: str | None
    """The module's; None for the phase itself."""
    name: str
    start: float
    """Seconds."""
    depth: int
    end: float = 0.0
    inner: float = 0.0
    """Seconds of the spans within it."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start

    @property
    def own(self) -> float:
        """How long it took without the spans within it."""
        return self.seconds - self.inner


class Spans:
    """Records the spans of a step: phases by `phase`, modules by being told (`owners.watched`), nodes by `follow`."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.done: list[Span] = []
        self._open: list[Span] = []
        self._marks: list[tuple[int, str]] = []
        self._clock = _clock(device)
        self._homes = {
            id(parameter): path or WHOLE
            for path, module in model.named_modules()
            for parameter in module.parameters(recurse=False)
        }

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record what happens inside as a phase."""
        self.begin(name)
        try:
            yield
        finally:
            self.leave()

    def begin(self, phase: str) -> None:
        """Begin a phase that `leave` ends."""
        self._push(Span(phase, None, phase, self._clock(), len(self._open)))

    def enter(self, path: str) -> None:
        """A module's forward pass begins; within a backward phase it is computed again."""
        name = path.rpartition(".")[2]
        self._push(Span(self._open[0].phase if self._open else FORWARD, path, name, self._clock(), len(self._open)))

    def leave(self) -> None:
        """End what began last."""
        span = self._open.pop()
        span.end = self._clock()
        if self._open:
            self._open[-1].inner += span.seconds
        self.done.append(span)
        self._mark()

    def follow(self, result: Tensor) -> None:
        """Record the nodes of the graph that ends in `result` when they run."""
        numbers = [number for number, _ in self._marks]
        for node in _nodes(result):
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                path = self._homes.get(id(leaf), LOSS)
            else:
                at = bisect.bisect_right(numbers, node._sequence_nr()) - 1
                path = self._marks[at][1] if at >= 0 else LOSS
            node.register_prehook(self._node_begins(path, node.name()))
            node.register_hook(self._node_ends)
        self._marks.clear()

    def _node_begins(self, path: str, name: str) -> Callable[[Any], None]:
        def hook(gradients: Any) -> None:
            self._push(Span(BACKWARD, path, name, self._clock(), len(self._open)))

        return hook

    def _node_ends(self, given: Any, taken: Any) -> None:
        self.leave()

    def _push(self, span: Span) -> None:
        self._open.append(span)
        self._mark()

    def _mark(self) -> None:
        """Note to whom the nodes belong that are made from now on; backward passes may have threads of their own."""
        if self._open and self._open[0].phase == FORWARD:
            self._marks.append((torch.autograd._get_sequence_nr(), self._open[-1].path or LOSS))


def _nodes(result: Tensor) -> Iterator[Any]:
    """Iterate over the nodes of the graph that ends in `result`, each once."""
    todo: list[Any] = [result.grad_fn]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo += [parent for parent, _ in node.next_functions]


def _clock(device: torch.device) -> Callable[[], float]:
    """Return the clock of a device; a GPU's waits for what was begun there."""
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock
