"""The memory plan of a run that fits: by the estimate, then by the largest micro-batch itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from peftkit.adaptation import Adaptation
from peftkit.data.batches import Batch
from peftkit.device import peak_memory
from peftkit.engine.memory_plan import MemoryPlan, recompute
from peftkit.engine.retrying import Retrying
from peftkit.engine.snapshot import snapshot
from peftkit.estimation.step import StepMemory, Unmeasured, run_step
from peftkit.free_memory import free_memory
from peftkit.machine import resident_memory
from peftkit.optim.build import state_bytes
from peftkit.recipe import TrainSection
from peftkit.recipe.size import AUTO, size_in_bytes

SPARE = 0.9
"""The part of the free memory that `auto` takes: estimates are true to about a tenth."""


@dataclass(frozen=True)
class Fit:
    """Chooses the plan of a run with `train.memory`, called with its passes before the first step."""

    section: TrainSection
    largest: Callable[[], Batch]
    """Returns the micro-batch that takes most."""
    notice: Callable[[str], None]

    def __call__(self, passes: Retrying) -> None:
        """Choose and try a plan; neither the state of the run nor what it draws is touched."""
        plain = passes.plain
        device, batch = plain.device, self.largest()
        held = torch.accelerator.memory_allocated(device) if device.type in ("cuda", "xpu") else resident_memory()
        free = room(str(self.section.memory), device, held)
        expected: dict[MemoryPlan, int] = {}
        for plan in passes.plans:
            expected[plan] = self.needed(passes, plan, batch)
            if expected[plan] <= free:
                break
        plan = next(reversed(expected))
        if plan != passes.plan:
            passes.take(plan)
            cheapest = _gb(expected[passes.plans[0]])
            self.notice(f"train.memory: {cheapest} would be taken and {_gb(free)} may be: {plan}.")
        if expected[plan] > free:
            self.notice(f"train.memory: no plan fits; the last is estimated at {_gb(expected[plan])}.")
        before = peak_memory(device)
        batches = [batch] * min(2, self.section.accumulation)
        with snapshot(device, plain.parameters):
            passes.backward(batches, max(1, sum(each.trained for each in batches)))
        after = peak_memory(device)
        taken = after - held + self._states(plain.adaptation, device)
        # A peak from before, such as that of loading, says nothing of the step.
        if after > before and taken > free:
            self._correct(passes, batch, taken, free)

    def needed(self, passes: Retrying, plan: MemoryPlan, batch: Batch) -> int:
        """Estimate the bytes that a step takes by a plan, beside what is there before the first one.

        What cannot be told beforehand counts nothing: trying the plan then shows it.
        """
        plain = passes.plain
        piece, count = heaviest(plan, batch, self.section.accumulation)
        recompute(plain.engine.model, plan.recomputed)
        try:
            step = run_step(
                plain.engine.model,
                plain.adaptation,
                piece,
                self.section,
                plain.device,
                plain.precision,
                passes=count,
                arrangement=plain.engine.arrangement,
                objective=plain.objective,
            )
        except Unmeasured:
            step = StepMemory(0, {})
        finally:
            recompute(plain.engine.model, passes.plan.recomputed)
        step = step.elsewhere() if plan.offloaded else step
        return sum(step.at_peak.values()) + step.gaps + self._states(plain.adaptation, plain.device)

    def _correct(self, passes: Retrying, batch: Batch, taken: int, free: int) -> None:
        """Go on to the first plan that fits if the estimate is wrong by as much as it was on this one."""
        wrong = max(0, taken - self.needed(passes, passes.plan, batch))
        plan = passes.plan
        for plan in passes.left:
            if self.needed(passes, plan, batch) + wrong <= free:
                break
        if plan != passes.plan:
            passes.take(plan)
            self.notice(f"train.memory: {_gb(taken)} were taken and {_gb(free)} may be: {plan}.")
        else:
            self.notice(f"train.memory: {_gb(taken)} were taken and {_gb(free)} may be, and no plan is left.")

    def _states(self, adaptation: Adaptation, device: torch.device) -> int:
        """Count the bytes of the optimizer's states, which are made in the first step."""
        groups = adaptation.groups(self.section.learning_rate, self.section.weight_decay)
        return state_bytes(groups, self.section.optimizer, device=device)


def room(memory: str, device: torch.device, held: int) -> int:
    """Return the bytes that may be taken beside the `held` ones: of what is free, or of the size in the recipe."""
    return int(SPARE * free_memory(device)) if memory == AUTO else size_in_bytes(memory) - held


def heaviest(plan: MemoryPlan, batch: Batch, accumulation: int) -> tuple[Batch, int]:
    """Return the largest piece of a micro-batch by a plan, and how many passes show the peak: 2 beside gradients."""
    pieces = plan.pieces(batch)
    return max(pieces, key=lambda piece: piece.tokens), min(2, accumulation * len(pieces))


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
