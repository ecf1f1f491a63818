"""The training loop: one call is one optimizer step, and the state between calls is all that a checkpoint needs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from peftkit.adaptation import Adaptation
from peftkit.data.batches import Batch, Batches, without
from peftkit.device import peak_memory
from peftkit.engine.passes import OutOfMemory, Passes
from peftkit.engine.snapshot import random_state, set_random_state
from peftkit.optim.build import Optimizers
from peftkit.recipe import TrainSection
from peftkit.strategies import Step, Strategy, Update
from peftkit.training.schedule import scale
from peftkit.training.windows import Position, Window, count_steps, windows


class Pending(NamedTuple):
    """An optimizer step that is still to be taken."""

    window: Window
    batches: list[Batch]
    """The micro-batches, collated."""
    rate: float
    """The learning rate of the first group."""
    started: float

    @property
    def normaliser(self) -> int:
        """The terms of the losses of all micro-batches."""
        return max(1, sum(batch.trained for batch in self.batches))


class Validation(NamedTuple):
    """What was measured on held-out batches."""

    loss: float
    """Per term."""
    scores: dict[str, float]
    """Those of the objective."""


class Loop:
    """Trains an adaptation by `passes` over `batches`: windows of micro-batches, schedule, the strategy's steps.

    The loss of a window is the sum of its terms over their number, so that k micro-batches of b examples give the
    gradient of one of k·b. `step` counts the optimizer steps done.
    """

    def __init__(
        self,
        passes: Passes,
        adaptation: Adaptation,
        batches: Batches,
        section: TrainSection,
        strategy: Strategy,
        *,
        pad_id: int,
    ):
        self.passes, self.adaptation, self.batches, self.section = passes, adaptation, batches, section
        self.strategy, self.pad_id = strategy, pad_id
        self.device = passes.plain.device
        self.steps = count_steps(batches, section.accumulation, section.epochs, section.max_steps)
        self.step = 0
        self.position = Position()
        groups = adaptation.groups(section.learning_rate, section.weight_decay)
        strategy.check(groups)
        self.optimizer = Optimizers(groups, betas=section.betas, eps=section.eps, default=section.optimizer)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self._windows = None

    def run_step(self) -> dict[str, Any]:
        """Do one optimizer step and return its record; a loss or gradient that is not finite is a PeftkitError."""
        return self.take(self.next())

    def next(self) -> Pending:
        """Set the learning rate of the next optimizer step, tell the adapters its number, collate its micro-batches."""
        started = time.perf_counter()
        if self._windows is None:
            self._windows = windows(self.batches, self.section.accumulation, self.position)
        window = next(self._windows)
        self.adaptation.context.step = self.step
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            phase = self.adaptation.phase(group["keys"][0], self.step, self.steps)
            if self.step == phase.begin > 0:
                self.optimizer.forget(group, phase.forget)
            done, steps = self.step - phase.begin, phase.end - phase.begin
            group["lr"] = peak * scale(self.section.schedule, done, steps, self.section.warmup)
        batches = [self._collate(self.batches, indices) for indices in window.batches]
        return Pending(window, batches, self.optimizer.param_groups[0]["lr"], started)

    def take(self, pending: Pending, passes: Passes | None = None) -> dict[str, Any]:
        """Take a step, by other passes where some are given; return its record."""
        update = Update(
            self.adaptation,
            self.optimizer,
            self.parameters,
            self.section.clip,
            self.section.seed,
            self.step,
            self.steps,
            pending.rate,
        )
        try:
            done = self.strategy.step(passes or self.passes, pending.batches, pending.normaliser, update)
        except OutOfMemory as error:
            raise error.at(self.step + 1) from None
        self.step += 1
        self.position = pending.window.after
        return self._record(pending, done)

    def _record(self, pending: Pending, done: Step) -> dict[str, Any]:
        """Return what the log tells of a step that is done."""
        tokens, trained = (sum(getattr(batch, name) for batch in pending.batches) for name in ("tokens", "trained"))
        result, seconds = done.result, time.perf_counter() - pending.started
        return {
            "step": self.step,
            "epoch": round(pending.window.epochs, 6),
            "loss": result.loss / pending.normaliser,
            "lr": pending.rate,
            "grad_norm": done.norm,
            "tokens": tokens,
            "trained_tokens": trained,
            "computed_tokens": result.counts.computed,
            "padding_tokens_saved": result.counts.padding_saved,
            "shared_tokens_saved": result.counts.shared_saved,
            "tokens_per_s": round(tokens / seconds, 1),
            "trained_tokens_per_s": round(trained / seconds, 1),
            "memory": peak_memory(self.device),
            **self.adaptation.told(),
            **result.facts,
            **self.passes.plain.objective.scores(result.metrics),
        }

    def evaluate(self, batches: Batches, count: int | None = None) -> Validation:
        """Measure the first `count` batches as the objective evaluates."""
        planned = batches.plan(0)[:count]
        result = self.passes.evaluate(self._collate(batches, indices) for indices in planned)
        scores = self.passes.plain.objective.scores(result.metrics)
        return Validation(result.loss / max(1, result.weight), scores)

    def _collate(self, batches: Batches, indices: Sequence[int]) -> Batch:
        """Return a micro-batch, without the rows of soft prompts that training has cut."""
        return without(batches.collate(indices, self.pad_id), self.adaptation.dropped_ids)

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return what a checkpoint holds: tensors by part (adapter, optimizer, random) and plain facts."""
        tensors, plain = {}, {}
        for path, value in self.optimizer.state().items():
            (tensors if isinstance(value, Tensor) else plain)[path] = value
        parts = {"adapter": self.adaptation.state(), "optimizer": tensors, "random": random_state(self.device)}
        facts = {"step": self.step, "epoch": self.position.epoch, "batch": self.position.batch, "optimizer": plain}
        return parts, {**facts, **self.passes.state()}

    def load_state(self, parts: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.adaptation.load_state(parts["adapter"])
        self.optimizer.load_state({**parts["optimizer"], **facts["optimizer"]})
        self.step, self.position = facts["step"], Position(facts["epoch"], facts["batch"])
        self._windows = None
        set_random_state(parts["random"], self.device)
        self.passes.load_state(facts)
