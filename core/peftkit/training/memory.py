"""The memory ladder of a run: which rung it starts on, and how it steps down where the memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from peftkit.device import peak_memory, resident_memory
from peftkit.errors import PeftkitError
from peftkit.optim.build import state_bytes
from peftkit.recipe.size import AUTO, size_in_bytes
from peftkit.training.free_memory import free_memory
from peftkit.training.rungs import Rung
from peftkit.training.windows import Window

if TYPE_CHECKING:
    from peftkit.data.batches import Batches
    from peftkit.training.loop import Begun, Loop

SPARE = 0.9
"""The part of the free memory that `auto` takes: estimates are true to about a tenth."""
ADVICE = (
    "lower train.batch_tokens (and raise train.accumulation), lower train.max_length, set "
    "train.gradient_checkpointing=true, or set train.memory=auto, which does as much of that as it takes"
)
EXHAUSTED = "no rung of train.memory is left: lower train.max_length, or take a smaller model or a quantized one"


class OutOfMemory(PeftkitError):  # noqa: N818
    """The device has too little memory for a step, which has changed nothing."""

    def __init__(self, step: int, shape: tuple[int, int], advice: str):
        self.place = f"at step {step} on a batch of {shape[0]} rows of {shape[1]} tokens"
        super().__init__(f"the device ran out of memory {self.place}: {advice}. The last checkpoint stays as it was.")


class Ladder:
    """The rungs of a run, cheapest first, and the one on which it stands: it only ever goes down.

    `memory` is what the recipe says in `train.memory`.
    """

    def __init__(self, memory: str | None, rungs: Sequence[Rung]):
        self.memory, self.rungs = memory, list(rungs)
        self.rung = self.rungs[0]
        self.tell: Callable[[str], None] = lambda text: None
        """Receives what a person should know."""

    @property
    def advice(self) -> str:
        """What to do where the memory runs out on this rung."""
        return ADVICE if self.memory is None else EXHAUSTED

    @property
    def below(self) -> list[Rung]:
        """The rungs that are left; none for a rung of another device's ladder."""
        return self.rungs[self.rungs.index(self.rung) + 1 :] if self.rung in self.rungs else []

    def resume(self, model: nn.Module, rung: Rung) -> None:
        """Stand on the rung of a checkpoint."""
        self._stand(model, rung)

    def begin(self, loop: Loop) -> None:
        """Choose the rung before the first step, by the estimate, then by the largest micro-batch itself.

        Neither the state of the run nor what it draws is touched. Without `train.memory` there is nothing to choose.
        """
        from peftkit.training.loop import Begun

        if self.memory is None:
            return
        batch = _largest(loop)
        held = _held(loop.device)
        free = room(self.memory, loop.device, held)
        random = loop.random_state()
        expected = {}
        for rung in self.rungs:
            expected[rung] = needed(loop, rung, batch)
            if expected[rung] <= free:
                break
        rung = next(reversed(expected))
        if rung != self.rung:
            self._stand(loop.model, rung)
            self.tell(f"train.memory: {_gb(expected[self.rungs[0]])} would be taken and {_gb(free)} may be: {rung}.")
        if expected[rung] > free:
            self.tell(f"train.memory: no rung fits; the last is estimated at {_gb(expected[rung])}.")
        before = peak_memory(loop.device)
        batches = [batch] * min(2, loop.section.accumulation)
        self.attempt(loop, Begun(Window([], loop.position, 0.0), batches, 0.0, 0.0, []))
        loop.optimizer.zero_grad(set_to_none=True)
        loop.set_random_state(random)
        after = peak_memory(loop.device)
        taken = after - held + _states(loop)
        # A peak from before, such as that of loading, says nothing of the step.
        if after > before and taken > free:
            self._correct(loop, batch, taken, free)

    def attempt(self, loop: Loop, begun: Begun) -> float:
        """Find the gradients of a step, on a lower rung where the memory runs out; returns the loss per trained token.

        The step is repeated as if nothing had been, with the same state of what draws random numbers. Raises
        OutOfMemory on the last rung.
        """
        random = loop.random_state()
        while True:
            try:
                return loop.accumulate(begun)
            except OutOfMemory as error:
                if not self.below:
                    raise
                place = error.place
            # The error is gone here, and with it what its traceback held.
            loop.optimizer.zero_grad(set_to_none=True)
            loop.set_random_state(random)
            if loop.device.type == "cuda":
                torch.cuda.empty_cache()
            self._stand(loop.model, self.below[0])
            self.tell(f"the device ran out of memory {place}; the step is repeated: {self.rung}.")

    def _correct(self, loop: Loop, batch: Any, taken: int, free: int) -> None:
        """Go down to the first rung that fits if the estimate is wrong by as much as it was on this one."""
        wrong = max(0, taken - needed(loop, self.rung, batch))
        rung = self.rung
        for rung in self.below:
            if needed(loop, rung, batch) + wrong <= free:
                break
        if rung != self.rung:
            self._stand(loop.model, rung)
            self.tell(f"train.memory: {_gb(taken)} were taken and {_gb(free)} may be: {rung}.")
        else:
            self.tell(f"train.memory: {_gb(taken)} were taken and {_gb(free)} may be, and no rung is left.")

    def _stand(self, model: nn.Module, rung: Rung) -> None:
        self.rung = rung
        rung.apply(model)


def room(memory: str, device: torch.device, held: int) -> int:
    """Return the bytes that may be taken beside the `held` ones: of what is free, or of the size in the recipe."""
    return int(SPARE * free_memory(device)) if memory == AUTO else size_in_bytes(memory) - held


def heaviest(rung: Rung, batch: Any, accumulation: int) -> tuple[Any, int]:
    """Return the largest piece of a micro-batch on a rung, and how many passes show the peak: 2 beside gradients."""
    pieces = rung.pieces(batch)
    return max(pieces, key=lambda piece: piece.tokens), min(2, accumulation * len(pieces))


def needed(loop: Loop, rung: Rung, batch: Any) -> int:
    """Estimate the bytes that a step takes on a rung, beside what is there before the first one."""
    from peftkit.estimate import run_step

    piece, passes = heaviest(rung, batch, loop.section.accumulation)
    rung.apply(loop.model)
    try:
        step = run_step(
            loop.model,
            loop.adaptation,
            piece,
            loop.section,
            loop.device,
            loop.precision,
            passes=passes,
            arrangement=loop.engine.arrangement,
        )
    finally:
        loop.ladder.rung.apply(loop.model)
    step = step.elsewhere() if rung.offloaded else step
    return sum(step.at_peak.values()) + step.gaps + _states(loop)


def _largest(loop: Loop) -> Any:
    from peftkit.estimate import largest

    return largest(cast("Batches", loop.batches), loop.model, loop.pad_id)


def _states(loop: Loop) -> int:
    """Count the bytes of the optimizer's states, which are made in the first step."""
    groups = loop.adaptation.groups(loop.section.learning_rate, loop.section.weight_decay)
    return state_bytes(groups, loop.section.optimizer, device=loop.device)


def _held(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_memory()


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
