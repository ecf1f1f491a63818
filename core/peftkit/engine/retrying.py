"""Passes that fit into memory: a step that finds too little of it is repeated on the next memory plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from peftkit.data.batches import Batch
from peftkit.engine.memory_plan import MemoryPlan
from peftkit.engine.passes import OutOfMemory, Passes, Result, Wrapper
from peftkit.engine.snapshot import Snapshot

EXHAUSTED = "no memory plan is left: lower train.max_length, or take a smaller model or a quantized one"
PLAN, EARLIER = "memory_plan", "rung"
"""The key of a checkpoint and of the log, and what it was called in earlier versions."""


class Retrying(Wrapper):
    """Runs the inner passes by one of `plans`, cheapest first: it only ever goes on to dearer ones.

    `choose` takes these passes, and may set their plan before the first step of a run.
    """

    def __init__(
        self,
        inner: Passes,
        plans: Sequence[MemoryPlan],
        choose: Callable[[Retrying], None] = lambda passes: None,
        notice: Callable[[str], None] = lambda text: None,
    ):
        super().__init__(inner)
        self.plans, self.plan = list(plans), plans[0]
        self.choose, self.notice = choose, notice
        self._resumed = False

    @property
    def left(self) -> list[MemoryPlan]:
        """The plans that need less; none for a plan of another device."""
        return self.plans[self.plans.index(self.plan) + 1 :] if self.plan in self.plans else []

    def take(self, plan: MemoryPlan) -> None:
        """Go on by another plan."""
        self.plan = plan
        plan.apply(self.plain.engine)

    def open(self) -> None:
        """Choose the plan, unless a checkpoint holds it."""
        if not self._resumed:
            self.choose(self)
        self.inner.open()

    def backward(self, batches: Sequence[Batch], normaliser: int) -> Result:
        """Add gradients, on a further plan where the memory runs out, as if nothing had been before.

        Raises OutOfMemory on the last one.
        """
        before = Snapshot(self.plain.device, self.plain.parameters)
        while True:
            try:
                done = self.inner.backward([piece for batch in batches for piece in self.pieces(batch)], normaliser)
                return done._replace(facts={**done.facts, PLAN: str(self.plan)})
            except OutOfMemory as error:
                if not self.left:
                    raise OutOfMemory(error.shape, EXHAUSTED) from None
                place = error.place
            # The error is gone here, and with it what its traceback held.
            before.restore()
            if self.plain.device.type != "cpu":
                torch.accelerator.empty_cache()
            self.take(self.left[0])
            self.notice(f"the device ran out of memory {place}; the step is repeated: {self.plan}.")

    def evaluate(self, batches: Iterable[Batch], *, as_trained: bool = False) -> Result:
        """Measure the pieces of the batches."""
        return self.inner.evaluate((piece for each in batches for piece in self.pieces(each)), as_trained=as_trained)

    def pieces(self, batch: Batch) -> list[Batch]:
        """Return what of a batch is computed at once."""
        return self.plan.pieces(batch)

    def state(self) -> dict[str, Any]:
        """Return the plan beside the inner passes' facts."""
        return {**self.inner.state(), PLAN: self.plan.as_dict()}

    def load_state(self, facts: Mapping[str, Any]) -> None:
        """Go on by the plan of a checkpoint."""
        plan = facts.get(PLAN, facts.get(EARLIER))
        if plan is not None:
            self.take(MemoryPlan(**plan))
            self._resumed = True
        self.inner.load_state(facts)
