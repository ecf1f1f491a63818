"""Times go to the modules that took them: told by a clock that the modules themselves set forward."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peftkit.engine.passes import BACKWARD, FORWARD
from peftkit.profiling import spans
from peftkit.profiling.measure import Profile, rows
from peftkit.profiling.owners import LOSS, WHOLE, Owner, watched
from peftkit.profiling.spans import Spans
from peftkit.profiling.trace import trace

NOW = [0.0]


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        NOW[0] += forward
        ctx.backward_takes = backward
        ctx.save_for_backward(x.clone())
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        assert len(ctx.saved_tensors) == 1
        NOW[0] += ctx.backward_takes
        return grads[0], None, None


class Slow(nn.Module):
    """Takes `forward` and `backward` seconds by the clock of the test, and its inner module in between."""

    def __init__(self, forward: float, backward: float, inner: nn.Module | None = None, again: bool = False):
        super().__init__()
        self.takes, self.again = (forward, backward), again
        self.inner = inner or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Pass on what came, after a while."""
        inner: Callable[[Tensor], Any] = self.inner
        y = checkpoint(inner, x, use_reentrant=False) if self.again else inner(x)
        return _Slow.apply(y, *self.takes)


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    NOW[0] = 0.0
    monkeypatch.setattr(spans, "_clock", lambda device: lambda: NOW[0])


def measured(model: nn.Module) -> tuple[Spans, dict[str, Any]]:
    """Run a forward and a backward pass and return the spans, and the row of each module."""
    found = Spans(model, torch.device("cpu"))
    x = torch.ones(2, requires_grad=True)
    with watched(model, found):
        with found.phase(FORWARD):
            loss = _Slow.apply(model(x), 0.5, 0.25).sum()
            found.follow(loss)
        with found.phase(BACKWARD):
            loss.backward()
    modules = [(path or WHOLE, type(module).__name__) for path, module in model.named_modules()]
    named = {path: Owner(path, label) for path, label in modules}
    made = rows({LOSS: Owner(LOSS, "loss"), **named}, found.done, {}, 1)
    return found, {row.name: row for row in made}


def test_times_are_those_of_the_modules_own_nodes():
    model = Slow(1, 2, nn.Sequential(Slow(4, 8), Slow(16, 32)))
    found, row = measured(model)
    own = {path: (one.forward, one.backward) for path, one in row.items() if one.own}
    assert own == {"(model)": (1, 2), "inner.0": (4, 8), "inner.1": (16, 32), LOSS: (0.5, 0.25)}
    assert (row["inner"].total, row["inner.1"].total, row["(model)"].total) == (60, 48, 63)
    phases = {span.phase: span.seconds for span in found.done if span.path is None}
    assert phases == {FORWARD: 21.5, BACKWARD: 42.25}


def test_what_is_computed_again_counts_to_the_backward_pass_of_its_module():
    model = Slow(1, 2, nn.Sequential(Slow(4, 8), Slow(16, 32)), again=True)
    _, row = measured(model)
    own = {path: (one.forward, one.backward) for path, one in row.items() if one.own}
    assert own == {"(model)": (1, 2), "inner.0": (4, 8 + 4), "inner.1": (16, 32 + 16), LOSS: (0.5, 0.25)}


def profiled() -> Profile:
    """Return a profile of a small model, with something saved."""
    found, row = measured(Slow(1, 2, nn.Sequential(Slow(4, 8), Slow(16, 32))))
    row["inner.1"].saved = 100
    for path in ("inner.1", "inner", "(model)"):
        row[path].total_saved = 100
    return Profile(
        about={"model": "<small>", "methods": ["one"], "dataset": "data", "device": "cpu", "precision": "fp32"},
        batch={"rows": 1, "tokens": 2, "trained_tokens": 1, "computed_tokens": 2},
        steps=1,
        step_s=63.75,
        phases={"data": 0.0, "layout": 0.0, FORWARD: 21.5, BACKWARD: 42.25, "update": 0.0},
        paths=list(row.values()),
        spans=found.done,
    )


def test_the_trace_holds_every_span_within_the_one_around_it():
    events = [event for event in json.loads(json.dumps(trace(profiled())))["traceEvents"] if event["ph"] == "X"]
    assert {"forward", "backward"} <= {event["name"] for event in events}
    inner = next(event for event in events if event["args"].get("module") == "inner.1" and event["cat"] == FORWARD)
    assert (inner["ts"], inner["dur"]) == (4e6, 16e6)
    open_until: list[float] = []
    for event in events:
        while open_until and event["ts"] >= open_until[-1]:
            open_until.pop()
        assert not open_until or event["ts"] + event["dur"] <= open_until[-1]
        if event["dur"]:
            open_until.append(event["ts"] + event["dur"])
