"""Times go to the modules that took them: modules that wait are known by how long, and events are added up exactly."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.utils.checkpoint import checkpoint

from peftkit.engine.passes import BACKWARD, FORWARD, REST
from peftkit.profiling.measure import Profile, Row, rows
from peftkit.profiling.owners import LOSS, WHOLE, watched
from peftkit.profiling.report import write
from peftkit.profiling.times import DATA, NODE, PHASES, Ranges, Times, times

SECOND = 0.002
"""Of the clock of these tests."""


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        time.sleep(forward * SECOND)
        ctx.backward_takes = backward
        ctx.save_for_backward(x.clone())
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        assert len(ctx.saved_tensors) == 1
        time.sleep(ctx.backward_takes * SECOND)
        return grads[0], None, None


class Slow(nn.Module):
    """Waits for `forward` and `backward` seconds of the tests' clock, and its inner module in between."""

    def __init__(self, forward: float, backward: float, inner: nn.Module | None = None, recompute: bool = False):
        super().__init__()
        self.takes, self.recompute = (forward, backward), recompute
        self.inner = inner or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Pass on what came, after a while."""
        inner: Callable[[Tensor], Any] = self.inner
        y = checkpoint(inner, x, use_reentrant=False) if self.recompute else inner(x)
        return _Slow.apply(y, *self.takes)


def measured(model: nn.Module) -> tuple[torch.profiler.profile, Times, dict[str, Row]]:
    """Run a forward and a backward pass and return what was recorded, and the row of each module."""
    ranges = Ranges()
    x = torch.ones(2, requires_grad=True)
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded,
        watched(model, ranges.enter, ranges.leave),
    ):
        ranges.enter(DATA)
        ranges(FORWARD)
        loss = _Slow.apply(model(x), 0.5, 0.25).sum()
        ranges(BACKWARD)
        loss.backward()
        ranges(REST)
        ranges.leave()
    owned = {LOSS: "loss", **{path or WHOLE: type(module).__name__ for path, module in model.named_modules()}}
    taken = times(recorded.events() or (), ranges, owned)
    return recorded, taken, {row.name: row for row in rows(owned, taken, {}, 1)}


def check(row: dict[str, Row], expected: dict[str, tuple[float, float]]) -> None:
    """Each owner waited at least as long as it was to, and what others do beside that is short in the sum."""
    for path, (forward, backward) in expected.items():
        assert row[path].forward >= forward * SECOND, path
        assert row[path].backward >= backward * SECOND, path
    whole = sum(sum(pair) for pair in expected.values()) * SECOND
    slack = sum(one.own for one in row.values()) - whole
    for path, one in row.items():
        forward, backward = expected.get(path, (0, 0))
        assert one.own - (forward + backward) * SECOND <= slack + 1e-9


def test_times_are_those_of_the_modules_own_nodes():
    model = Slow(1, 2, nn.Sequential(Slow(4, 8), Slow(16, 32)))
    _, taken, row = measured(model)
    check(row, {"(model)": (1, 2), "inner.0": (4, 8), "inner.1": (16, 32), LOSS: (0.5, 0.25)})
    assert row["inner"].total == pytest.approx(sum(row[f"inner.{n}"].total for n in (0, 1)) + row["inner"].own)
    assert sum(one.own for one in row.values()) == pytest.approx(taken.phases[FORWARD] + taken.phases[BACKWARD])
    assert max(row.values(), key=lambda one: one.own).name == "inner.1"


def test_what_is_recomputed_counts_to_the_backward_pass_of_its_module():
    model = Slow(1, 2, nn.Sequential(Slow(4, 8), Slow(16, 32)), recompute=True)
    _, _, row = measured(model)
    check(row, {"(model)": (1, 2), "inner.0": (4, 8 + 4), "inner.1": (16, 32 + 16), LOSS: (0.5, 0.25)})


@dataclass(eq=False)
class Event:
    """One of the profiler's, in seconds."""

    name: str
    start: float
    seconds: float
    cpu_parent: Event | None = None
    sequence_nr: int = -1
    device_type: DeviceType = DeviceType.CPU

    @property
    def time_range(self) -> Any:
        """Where it begins."""
        return self

    @property
    def cpu_time_total(self) -> float:
        """Microseconds."""
        return self.seconds * 1e6

    device_time_total = cpu_time_total


def test_events_are_added_up_without_those_within_them():
    ranges = Ranges()
    ranges._marks = [(3, "a"), (5, "b"), (7, LOSS)]
    forward, backward = Event(FORWARD, 0, 20), Event(BACKWARD, 20, 30)
    a = Event("a", 1, 8, forward)
    product = Event("aten::mm", 1.5, 3, a)
    b = Event("b", 2, 2, product)
    node = Event(f"{NODE}MmBackward0", 21, 10, backward, 5)
    added = Event(f"{NODE}torch::autograd::AccumulateGrad", 31, 1, backward)
    recomputed = Event("a", 22, 4, Event("aten::mm", 22, 4, node))
    last = Event(f"{NODE}SumBackward0", 40, 2, backward, 9)
    on_a_gpu = Event("a", 1, 100, device_type=DeviceType.CUDA)
    events = [last, recomputed, added, node, b, product, a, backward, forward, on_a_gpu, Event("c", 1, 5)]
    for cuda in (False, True):
        taken = times(events, ranges, {"a", "b"}, cuda)
        assert taken.phases == {**dict.fromkeys(PHASES, 0.0), FORWARD: 20, BACKWARD: 30}
        assert taken.own == pytest.approx(
            {
                (LOSS, FORWARD): 12,
                (LOSS, BACKWARD): 17 + 2,
                ("a", FORWARD): 6,
                ("b", FORWARD): 2,
                ("b", BACKWARD): 6 + 1,
                ("a", BACKWARD): 4,
            }
        )


def test_the_trace_is_torchs_and_names_phases_and_modules(tmp_path):
    recorded, taken, row = measured(Slow(1, 2, nn.Sequential(Slow(4, 8), Slow(16, 32))))
    about = {"model": "<small>", "methods": ["one"], "dataset": "data", "device": "cpu", "precision": "fp32"}
    write(Profile(about, {}, 1, 0.1, taken.phases, list(row.values()), recorded), tmp_path / "profile")
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    names = {event.get("name", "") for event in events}
    assert {*PHASES, "inner.1", f"{NODE}_SlowBackward"} <= names | {"layout"}
