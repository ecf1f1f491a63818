"""Follows a training step module by module: when each runs forward and backward, and what it keeps in between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

OUTSIDE = "outside any module"
"""The owner of what is kept while no module runs: the head's gradient, made with the loss, for one."""


@dataclass(frozen=True)
class Interval:
    """A module at work, in seconds from the start of the watch; `depth` counts the modules around it."""

    path: str
    phase: str
    """`forward` or `backward`."""
    start: float
    end: float
    depth: int


@dataclass
class Watch:
    """What was seen of a model within `watching`."""

    names: dict[int, str]
    intervals: list[Interval] = field(default_factory=list)
    kept: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Owner and bytes of each memory that was saved for the backward pass, the first owner of each."""
    _open: list[tuple[str, str, float]] = field(default_factory=list)
    _began: float = field(default_factory=time.perf_counter)
    _weights: set[int] = field(default_factory=set)
    _alive: list[Any] = field(default_factory=list)

    def enter(self, module: nn.Module, phase: str) -> None:
        """Note that a module of the model begins to run."""
        if id(module) in self.names:
            self._open.append((self.names[id(module)], phase, time.perf_counter() - self._began))

    def leave(self, module: nn.Module, phase: str) -> None:
        """Note that it has run; what began within it and did not end, as it passes no gradient on, ends with it."""
        path = self.names.get(id(module))
        if not any(entry[:2] == (path, phase) for entry in self._open):
            return
        now = time.perf_counter() - self._began
        while self._open:
            inner, kind, start = self._open.pop()
            self.intervals.append(Interval(inner, kind, start, now, len(self._open)))
            if (inner, kind) == (path, phase):
                return

    def keep(self, tensor: Tensor) -> Tensor:
        """Note who saves a tensor for the backward pass; weights do not count, shared memory counts once."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key and key not in self._weights and key not in self.kept:
            owner = next((path for path, phase, _ in reversed(self._open) if phase == "forward"), OUTSIDE)
            self.kept[key] = (owner, storage.nbytes())
            # Memory that is freed would be given out again under the same address.
            self._alive.append(storage)
        return tensor


@contextmanager
def watching(model: nn.Module, memory: bool) -> Iterator[Watch]:
    """Watch the model inside: its time, or with `memory` what it keeps, which takes time of its own."""
    watch = Watch({id(module): name or type(model).__name__ for name, module in model.named_modules()})
    watch._weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    with ExitStack() as stack:

        def entered(module: nn.Module, args: Any) -> None:
            watch.enter(module, "forward")

        def left(module: nn.Module, args: Any, output: Any) -> None:
            watch.leave(module, "forward")

        def entered_backward(module: nn.Module, gradients: Any) -> None:
            watch.enter(module, "backward")

        def left_backward(module: nn.Module, inner: Any, outer: Any) -> None:
            watch.leave(module, "backward")

        handles = [hooks.register_module_forward_pre_hook(entered), hooks.register_module_forward_hook(left)]
        if memory:
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(watch.keep, lambda tensor: tensor))
        else:
            handles.append(hooks.register_module_full_backward_pre_hook(entered_backward))
            handles.append(hooks.register_module_full_backward_hook(left_backward))
        for handle in handles:
            stack.callback(handle.remove)
        yield watch
    watch._alive.clear()
