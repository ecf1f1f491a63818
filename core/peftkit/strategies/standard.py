"""The step of backpropagation: gradients, the methods' hooks, clipping, the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftkit.data.batches import Batch
from peftkit.engine.passes import Passes
from peftkit.strategies import Step, Strategy, Update


@dataclass(frozen=True, kw_only=True)
class Standard(Strategy, name="standard"):
    """One forward and backward pass over each micro-batch, and one step of the optimizer."""

    summary: ClassVar[str] = "Takes a step of the optimizer along the gradients of the micro-batches."

    def step(self, passes: Passes, batches: Sequence[Batch], normaliser: int, update: Update) -> Step:
        result = passes.backward(batches, normaliser)
        loss = result.loss / normaliser
        update.check(loss)
        update.adaptation.after_backward(update.step, update.steps)
        norm = _clip(update)
        update.check(loss, norm)
        update.optimizer.step()
        update.adaptation.after_step(update.step, update.steps)
        update.optimizer.zero_grad(set_to_none=True)
        return Step(result, norm)


def _clip(update: Update) -> float:
    """Clip the gradients in place where the recipe says so; return their norm before."""
    if update.clip is not None:
        return nn.utils.clip_grad_norm_(update.parameters, update.clip).item()
    return nn.utils.get_total_norm([p.grad for p in update.parameters if p.grad is not None]).item()
