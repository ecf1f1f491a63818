"""Profile a recipe's training step: a few steps of its loop are run and measured, and nothing of them is kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from peftkit.data.batches import Batch
from peftkit.engine.counts import counts
from peftkit.engine.passes import BACKWARD, FORWARD, Plain
from peftkit.estimation.step import largest
from peftkit.profiling.owners import ancestors, owners, place, watched
from peftkit.profiling.saved import Saved
from peftkit.profiling.times import DATA, Ranges, Times, times
from peftkit.recipe import Recipe
from peftkit.training.preparation import Prepared, prepare


@dataclass
class Row:
    """What one module or one kind of module takes: seconds of a step, and bytes that it saves.

    `forward`, `backward` and `saved` are its own; `total` and `total_saved` have those of the modules within it too.
    """

    name: str
    """A path; of a kind of modules the places where they are, a star for each number."""
    label: str
    modules: int = 1
    forward: float = 0.0
    backward: float = 0.0
    total: float = 0.0
    saved: int = 0
    total_saved: int = 0

    @property
    def own(self) -> float:
        """Its own seconds, forward and backward."""
        return self.forward + self.backward

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; times in seconds a step, sizes in bytes."""
        plain = {"name": self.name, "label": self.label, "modules": self.modules}
        seconds = {f"{key}_s": getattr(self, key) for key in ("forward", "backward", "total")}
        return {**plain, **seconds, "saved_bytes": self.saved, "total_saved_bytes": self.total_saved}


@dataclass
class Profile:
    """Where a training step goes. Times are means over the watched steps; `step_s` is the median of unwatched ones."""

    about: dict[str, Any]
    """The model, methods, data set, device and precision."""
    batch: dict[str, int]
    """Of the micro-batch whose saved tensors are counted, the largest of an epoch: rows and tokens."""
    steps: int
    step_s: float
    phases: dict[str, float]
    """Seconds of a step by phase."""
    paths: list[Row]
    recorded: torch.profiler.profile | None = field(repr=False, default=None)
    """What torch's profiler recorded of the watched steps."""

    @property
    def saved(self) -> int:
        """The bytes that are saved for the backward pass."""
        return sum(row.saved for row in self.paths)

    def kinds(self) -> list[Row]:
        """Return the rows of classes by their roles, over all layers, in the order of the model."""
        labels = {row.name: row.label for row in self.paths}
        merged: dict[str, Row] = {}
        places: dict[str, dict[str, None]] = {}
        for row in self.paths:
            kind = merged.setdefault(row.label, Row("", row.label, modules=0))
            places.setdefault(row.label, {})[place(row.name)] = None
            kind.modules += 1
            kind.forward += row.forward
            kind.backward += row.backward
            kind.saved += row.saved
            if all(labels.get(path) != row.label for path in ancestors(row.name)):
                kind.total += row.total
                kind.total_saved += row.total_saved
        for label, kind in merged.items():
            kind.name = ", ".join(places[label])
        return list(merged.values())

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, the largest first."""
        kinds = self.kinds()
        return {
            **self.about,
            "steps": self.steps,
            "step_s": self.step_s,
            "phases_s": self.phases,
            "micro_batch": self.batch,
            "saved_bytes": self.saved,
            "saved_by_kind": [row.as_dict() for row in by_saved(kinds)],
            "saved_by_path": [row.as_dict() for row in by_saved(self.paths)],
            "time_by_kind": [row.as_dict() for row in by_time(kinds)],
            "time_by_path": [row.as_dict() for row in by_time(self.paths)],
        }


def by_saved(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that save something, the largest first."""
    return sorted((row for row in rows if row.saved), key=lambda row: row.saved, reverse=True)


def by_time(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that took time of their own, the longest first."""
    return sorted((row for row in rows if row.own), key=lambda row: row.own, reverse=True)


def profile(recipe: Recipe, steps: int = 3) -> Profile:
    """Set up the run of `recipe`, and watch `steps` optimizer steps after one that warms up; writes nothing.

    As many steps before are timed as a whole, unwatched: watching takes time of its own. Raises PeftkitError for what
    would stop the run at its start.
    """
    plainly = recipe.train.model_copy(update={"compile": False})
    ranges = Ranges()
    prepared = prepare(recipe.model_copy(update={"train": plainly}), phase=ranges)
    prepared.loop.passes.open()
    return profile_loop(prepared, ranges, steps)


def profile_loop(prepared: Prepared, ranges: Ranges, steps: int = 3) -> Profile:
    """Profile a run that is set up with `ranges` as its phase; its adapter learns twice `steps` and 1 steps."""
    loop, plain = prepared.loop, prepared.loop.passes.plain
    model = plain.engine.model
    batch = largest(prepared.batches, model, loop.pad_id)
    batch = max(loop.passes.pieces(batch), key=lambda piece: piece.tokens)
    sizes, computed = saved_by(plain, batch)
    sizes = sizes if loop.strategy.needs().backward else {}
    # A schedule is not run beyond its end.
    loop.steps = max(loop.steps, loop.step + 2 * steps + 1)
    loop.run_step()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        loop.run_step()
        seconds.append(time.perf_counter() - began)
    cuda = loop.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities) as recorded, watched(model, ranges.enter, ranges.leave):
        for _ in range(steps):
            ranges.enter(DATA)
            loop.run_step()
            ranges.leave()
    owned = owners(model)
    taken = times(recorded.events() or (), ranges, owned, cuda)
    return Profile(
        about={
            "model": prepared.loaded.name,
            "methods": [method.name for method in prepared.adaptation.chosen],
            "dataset": prepared.dataset,
            "device": loop.device.type,
            "precision": plain.precision,
        },
        batch={
            **{"rows": batch.examples, "tokens": batch.tokens, "trained_tokens": batch.trained},
            "computed_tokens": computed,
        },
        steps=steps,
        step_s=statistics.median(seconds),
        phases={name: whole / steps for name, whole in taken.phases.items()},
        paths=rows(owned, taken, sizes, steps),
        recorded=recorded,
    )


def saved_by(plain: Plain, batch: Batch) -> tuple[dict[str, int], int]:
    """Run the loss of a micro-batch; return the bytes saved for its backward pass by path, and the tokens computed."""
    engine = plain.engine
    saved = Saved(engine.recompute)
    engine.model.train()
    packed = engine.pack(batch).to(plain.device)
    with engine.running(packed), saved.watching(engine.model):
        loss = plain.loss(packed)
        sizes = saved.sizes(engine.model)
    del loss
    return sizes, counts(batch, packed).computed


def rows(owned: Mapping[str, str], taken: Times, sizes: Mapping[str, int], steps: int) -> list[Row]:
    """Make a row of each owner that ran or saved, and of those around it, in the order of the model."""
    made = {path: Row(path, label) for path, label in owned.items()}
    for path, row in made.items():
        row.forward, row.backward = (taken.own.get((path, phase), 0.0) / steps for phase in (FORWARD, BACKWARD))
        row.saved = sizes.get(path, 0)
        for around in (path, *(path for path in ancestors(path) if path in made)):
            made[around].total += row.own
            made[around].total_saved += row.saved
    return [row for row in made.values() if row.total or row.total_saved]
