"""Passes in fp16: losses are multiplied before they go back, so that small gradients are not rounded to nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from peftkit.data.batches import Batch
from peftkit.engine.passes import Passes, Result, Wrapper
from peftkit.engine.snapshot import Snapshot

FIRST, PATIENCE = 2.0**16, 2000
"""The factor at the start, and the steps without an overflow after which it doubles: those of torch's GradScaler."""
STATE = "loss_scale"


class Scaled(Wrapper):
    """Runs the inner passes on losses times a factor, and divides their gradients by it (Micikevicius et al. 2018).

    Where a gradient overflows, the passes are repeated with half the factor, as if nothing had been before: unlike in
    torch's GradScaler no step is left out, so that the schedule and a resumed run know nothing of it.
    """

    def __init__(self, inner: Passes):
        super().__init__(inner)
        self.scale, self.steps = FIRST, 0
        """The factor, and the steps since it changed."""

    def backward(self, batches: Sequence[Batch], normaliser: int) -> Result:
        """Add gradients; those that overflow at any factor are left as they are, for the step to refuse."""
        plain = self.plain
        before = Snapshot(plain.device, plain.parameters)
        while True:
            for parameter in plain.parameters:
                parameter.grad = None
            plain.scale = self.scale
            try:
                done = self.inner.backward(batches, normaliser)
            finally:
                plain.scale = 1.0
            if self.scale <= 1 or not math.isfinite(done.loss) or self._finite():
                break
            before.restore()
            self.scale, self.steps = self.scale / 2, 0
        for parameter, earlier in zip(plain.parameters, before.gradients, strict=True):
            if parameter.grad is not None:
                parameter.grad.div_(self.scale)
            if earlier is not None:
                parameter.grad = earlier if parameter.grad is None else parameter.grad.add_(earlier)
        done = done._replace(facts={**done.facts, STATE: self.scale})
        self.steps += 1
        if self.steps == PATIENCE:
            self.scale, self.steps = self.scale * 2, 0
        return done

    def _finite(self) -> bool:
        gradients = [parameter.grad for parameter in self.plain.parameters if parameter.grad is not None]
        return bool(torch.isfinite(nn.utils.get_total_norm(gradients)))

    def state(self) -> dict[str, Any]:
        """Return the factor beside the inner passes' facts."""
        return {**self.inner.state(), STATE: [self.scale, self.steps]}

    def load_state(self, facts: Mapping[str, Any]) -> None:
        """Go on with the factor of a checkpoint."""
        if STATE in facts:
            self.scale, self.steps = facts[STATE]
        self.inner.load_state(facts)
