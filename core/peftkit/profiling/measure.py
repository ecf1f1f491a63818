"""Profile a recipe's training step: a few steps of its loop are run and measured, and nothing of them is kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from peftkit.device import autocast
from peftkit.estimate import largest
from peftkit.profiling.owners import LOSS, Owner, ancestors, owners, place, watched
from peftkit.profiling.saved import Saved
from peftkit.profiling.spans import BACKWARD, FORWARD, Span, Spans
from peftkit.training.counts import counts

if TYPE_CHECKING:
    from peftkit.recipe import Recipe
    from peftkit.training.loop import Loop
    from peftkit.training.preparation import Prepared

DATA, LAYOUT, UPDATE = "data", "layout", "update"
PHASES = (DATA, LAYOUT, FORWARD, BACKWARD, UPDATE)
"""Of a step: collate, lay the micro-batch out, the loss, its gradients, and the optimizer with what is around it."""


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
        return {
            "name": self.name,
            "label": self.label,
            "modules": self.modules,
            "forward_s": self.forward,
            "backward_s": self.backward,
            "total_s": self.total,
            "saved_bytes": self.saved,
            "total_saved_bytes": self.total_saved,
        }


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
    spans: list[Span] = field(repr=False, default_factory=list)
    """Of all measured steps, one after another."""

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

    As many steps again are timed as a whole, unwatched: watching takes time of its own. Raises PeftkitError for what
    would stop the run at its start.
    """
    from peftkit.training.preparation import prepare

    prepared = prepare(recipe)
    prepared.loop.ladder.begin(prepared.loop)
    return profile_loop(prepared, steps)


def profile_loop(prepared: Prepared, steps: int = 3) -> Profile:
    """Profile a run that is set up; its adapter has learned twice `steps` and 1 steps then."""
    loop = prepared.loop
    batch = largest(prepared.loop.batches, loop.model, loop.pad_id)  # type: ignore[arg-type]
    batch = max(loop.ladder.rung.pieces(batch), key=lambda piece: piece.tokens)
    sizes, computed = saved_by(loop, batch)
    # A schedule is not run beyond its end.
    loop.steps = max(loop.steps, loop.step + 2 * steps + 1)
    loop.run_step()
    # First, as nodes that add up gradients may outlive a step and with them the hooks that watch.
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        loop.run_step()
        seconds.append(time.perf_counter() - began)
    spans = Spans(loop.model, loop.device)
    with watched(loop.model, spans), _watched_loop(loop, spans) as step:
        for _ in range(steps):
            step()
    return Profile(
        about={
            "model": prepared.loaded.name,
            "methods": [method.name for method in prepared.adaptation.chosen],
            "dataset": prepared.dataset,
            "device": loop.device.type,
            "precision": loop.precision,
        },
        batch={
            "rows": batch.examples,
            "tokens": batch.tokens,
            "trained_tokens": batch.trained,
            "computed_tokens": computed,
        },
        steps=steps,
        step_s=statistics.median(seconds),
        phases={
            name: sum(span.seconds for span in spans.done if span.name == name and span.path is None) / steps
            for name in PHASES
        },
        paths=rows(owners(loop.model), spans.done, sizes, steps),
        spans=spans.done,
    )


def saved_by(loop: Loop, batch: Any) -> tuple[dict[str, int], int]:
    """Run the loss of a micro-batch; return the bytes saved for its backward pass by path, and the tokens computed."""
    engine = loop.engine
    saved = Saved(engine.again)
    loop.model.train()
    laid = engine.lay(batch).to(loop.device)
    with engine.running(laid), saved.watching(loop.model):
        with autocast(loop.device, loop.casts):
            loss = engine.loss(laid, loop.device, loop.section.label_smoothing)
        sizes = saved.sizes(loop.model)
    del loss
    return sizes, counts(batch, laid).computed


def rows(found: dict[str, Owner], spans: Sequence[Span], sizes: dict[str, int], steps: int) -> list[Row]:
    """Make a row of each owner that ran or saved, and of those around it, in the order of the model."""
    made = {path: Row(path, owner.label) for path, owner in found.items()}
    for span in spans:
        if span.path is None and span.phase not in (FORWARD, BACKWARD):
            continue
        row, own = made[span.path or LOSS], span.own / steps
        row.forward += own if span.phase == FORWARD else 0.0
        row.backward += own if span.phase == BACKWARD else 0.0
    for path, size in sizes.items():
        made[path].saved += size
    for path, row in made.items():
        for around in (path, *(path for path in ancestors(path) if path in made)):
            made[around].total += row.own
            made[around].total_saved += row.saved
    return [row for row in made.values() if row.total or row.total_saved]


@contextmanager
def _watched_loop(loop: Loop, spans: Spans) -> Iterator[Any]:
    """Have the loop run its steps with an engine that tells `spans` of the phases; yields what does one step."""
    watched_engine = _Watched(loop.engine, spans)
    loop.engine, engine = watched_engine, loop.engine  # type: ignore[assignment]

    def step() -> None:
        spans.begin(DATA)
        loop.run_step()
        spans.leave()

    try:
        yield step
    finally:
        loop.engine = engine


class _Watched:
    """An engine that ends the phase before and begins the next one at each of its calls."""

    def __init__(self, engine: Any, spans: Spans):
        self._engine, self._spans = engine, spans

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def lay(self, batch: Any) -> Any:
        """Lay out, as a phase of its own; what follows until the loss counts to it."""
        self._next(LAYOUT)
        return self._engine.lay(batch)

    def loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss, and follow its graph: what comes next is the backward pass."""
        self._next(FORWARD)
        loss = self._engine.loss(*args, **kwargs)
        self._spans.follow(loss)
        self._next(BACKWARD)
        return loss

    @contextmanager
    def running(self, batch: Any) -> Iterator[None]:
        """Run; the backward pass is over at its end."""
        with self._engine.running(batch) or nullcontext():
            yield
            self._next(UPDATE)

    def _next(self, phase: str) -> None:
        self._spans.leave()
        self._spans.begin(phase)
