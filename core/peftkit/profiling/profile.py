"""A few training steps of a recipe, watched: what runs longest, and who keeps most for the backward pass."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit import files
from peftkit.profiling.flame import flame
from peftkit.profiling.watch import Interval, Watch, watching

if TYPE_CHECKING:
    from torch import nn

    from peftkit.recipe import Recipe
    from peftkit.training.loop import Loop


@dataclass(frozen=True)
class Line:
    """A module, or all modules of one place in their layers (`layers.*.mlp`): seconds of a step and bytes kept."""

    place: str
    kind: str
    """The class."""
    calls: int
    forward: float
    """Seconds within it, modules inside it included."""
    backward: float
    own: float
    """Seconds forward and backward outside the modules inside it."""
    kept: int
    """Bytes that it saved for the backward pass itself."""


@dataclass(frozen=True)
class Profile:
    """What was measured; `lines` are by place, the longest first, `owners` by place, the most bytes first."""

    steps: int
    seconds: float
    """Of a step that is not watched."""
    saved: int
    """Bytes saved for the backward pass of one step."""
    lines: list[Line]
    owners: list[tuple[str, int]]
    paths: list[tuple[str, int]]
    """As `owners`, each module by itself."""
    intervals: list[Interval]
    """Of the last step."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "steps": self.steps,
            "step_seconds": self.seconds,
            "saved_bytes": self.saved,
            "owners": [{"place": place, "bytes": size} for place, size in self.owners],
            "modules": [{"path": path, "bytes": size} for path, size in self.paths],
            "lines": [vars(line) for line in self.lines],
        }

    def write(self, folder: Path) -> list[Path]:
        """Write profile.json, the flame chart and the Chrome trace into `folder`; returns the paths."""
        parts = {
            "profile.json": json.dumps(self.as_dict(), indent=2) + "\n",
            "flame.svg": flame(self.intervals),
            "trace.json": json.dumps({"traceEvents": [_event(interval) for interval in self.intervals]}) + "\n",
        }
        for name, text in parts.items():
            files.write_text(folder / name, text)
        return [folder / name for name in parts]


def profile(recipe: Recipe, steps: int = 3) -> Profile:
    """Prepare a run as `recipe` says, and watch `steps` of its steps after one that warms up; no run folder is made.

    Raises PeftkitError for whatever would stop the run.
    """
    from peftkit.training.preparation import prepare

    return measure(prepare(recipe).loop, steps)


def measure(loop: Loop, steps: int) -> Profile:
    """Watch steps of a loop: one to warm up, one for what is kept, `steps` for the time, and as many unwatched."""
    loop.run_step()
    with watching(loop.model, memory=True) as memory:
        loop.run_step()
    watches: list[Watch] = []
    for _ in range(steps):
        with watching(loop.model, memory=False) as watch:
            loop.run_step()
        watches.append(watch)
    started = time.perf_counter()
    for _ in range(steps):
        loop.run_step()
    took = time.perf_counter() - started
    by_path: dict[str, int] = defaultdict(int)
    for owner, size in memory.kept.values():
        by_path[owner] += size
    by_place: dict[str, int] = defaultdict(int)
    for owner, size in by_path.items():
        by_place[place(owner)] += size
    return Profile(
        steps,
        took / steps,
        sum(by_path.values()),
        _lines(loop.model, watches, by_place),
        _sorted(by_place),
        _sorted(by_path),
        watches[-1].intervals,
    )


def place(path: str) -> str:
    """Return the place of a module in whichever layer it is: `model.layers.3.mlp` is at `model.layers.*.mlp`."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", path.replace(".seated.default", " adapter"))


def _sorted(sizes: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: -item[1])


def _lines(model: nn.Module, watches: Iterable[Watch], kept: dict[str, int]) -> list[Line]:
    kinds = {place(name or type(model).__name__): type(module).__name__ for name, module in model.named_modules()}
    totals: dict[str, dict[str, float]] = defaultdict(lambda: {"forward": 0.0, "backward": 0.0, "own": 0.0, "calls": 0})
    runs = list(watches)
    for watch in runs:
        for interval, own in own_times(watch.intervals):
            found = totals[place(interval.path)]
            found[interval.phase] += (interval.end - interval.start) / len(runs)
            found["own"] += own / len(runs)
            found["calls"] += (interval.phase == "forward") / len(runs)
    lines = [
        Line(key, kinds.get(key, ""), round(t["calls"]), t["forward"], t["backward"], t["own"], kept.get(key, 0))
        for key, t in totals.items()
    ]
    return sorted(lines, key=lambda line: -line.own)


def own_times(intervals: Iterable[Interval]) -> list[tuple[Interval, float]]:
    """Return each interval with the seconds of it that lie outside the intervals directly within it."""
    inner: dict[int, float] = defaultdict(float)
    found = []
    # They are noted as they end: those within one come before it.
    for interval in intervals:
        length = interval.end - interval.start
        found.append((interval, max(0.0, length - inner.pop(interval.depth + 1, 0.0))))
        inner[interval.depth] += length
    return found


def _event(interval: Interval) -> dict[str, Any]:
    return {
        "name": interval.path,
        "cat": interval.phase,
        "ph": "X",
        "ts": interval.start * 1e6,
        "dur": (interval.end - interval.start) * 1e6,
        "pid": 1,
        "tid": 1,
    }
