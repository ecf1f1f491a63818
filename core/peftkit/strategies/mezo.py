"""Steps from two losses and a seed, without a backward pass (Malladi et al. 2023, arXiv:2305.17333).

The parameters are copied before the first loss and put back from the copy after the second: in place alone they would
be restored to within rounding, which adds up over thousands of steps. The copy's memory then holds the estimate of the
gradient, so that a step takes the bytes of what is trained once, and an optimizer or the activations take none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn

from peftkit.data.batches import Batch
from peftkit.engine.counts import total
from peftkit.engine.passes import Passes, Result
from peftkit.strategies import Needs, Step, Strategy, Update


@dataclass(frozen=True, kw_only=True)
class MeZO(Strategy, name="mezo"):
    """theta -= rate (g z + decay theta), g = (L(theta + epsilon z) - L(theta - epsilon z)) / (2 epsilon), z ~ N(0, 1).

    The losses are those of all micro-batches of a step, in evaluation mode. `train.clip` bounds |g|, whose mean square
    is the squared norm of the gradient.
    """

    summary: ClassVar[str] = "Follows a random direction as far as two losses tell: the memory of evaluation."

    epsilon: Annotated[float, Gt(0)] = 1e-3
    """How far the parameters are moved along the direction, to both sides."""
    rate_factor: Annotated[float, Gt(0)] = 0.1
    """Multiplies every learning rate: methods' own are for Adam, and one random direction tells less of a step."""

    def needs(self) -> Needs:
        ignores = ("optimizer", "betas", "eps", "compile", "memory", "gradient_checkpointing")
        return Needs(backward=False, optimizer=False, copies=1, ignores=ignores)

    @torch.no_grad()
    def step(self, passes: Passes, batches: Sequence[Batch], normaliser: int, update: Update) -> Step:
        seed = seed_of(update.seed, update.step)
        kept = [parameter.clone() for parameter in _parameters(update)]

        def measured(epsilon: float) -> tuple[Result, float]:
            for copy, (parameter, z) in zip(kept, directions(update, seed), strict=True):
                parameter.copy_(copy).add_(z, alpha=epsilon)
            result, penalty = passes.evaluate(batches, as_trained=True), update.adaptation.penalty()
            return result, result.loss / normaliser + (0.0 if penalty is None else penalty.item())

        try:
            (plus, above), (minus, below) = measured(self.epsilon), measured(-self.epsilon)
        finally:
            for copy, parameter in zip(kept, _parameters(update), strict=True):
                parameter.copy_(copy)
        kept.clear()
        projected = (above - below) / (2 * self.epsilon)
        update.check((plus.loss + minus.loss) / normaliser, abs(projected))
        norm = abs(projected)
        if update.clip is not None:
            projected = max(-update.clip, min(update.clip, projected))
        self.follow(update, seed, projected)
        facts = {**plus.facts, "lr": self.rate_factor * update.rate, "seed": seed, "projected_gradient": projected}
        counts = total([plus.counts, minus.counts])
        return Step(plus._replace(loss=(plus.loss + minus.loss) / 2, counts=counts, facts=facts), norm)

    @torch.no_grad()
    def follow(self, update: Update, seed: int, projected: float) -> None:
        """Take the step of a seed and its `projected_gradient`, which a log holds: no loss is measured.

        Methods see the estimate of the gradient as they would the gradient.
        """
        for parameter, z in directions(update, seed):
            parameter.grad = z.mul_(projected)
        update.adaptation.after_backward(update.step, update.steps)
        for group in update.optimizer.param_groups:
            rate = self.rate_factor * group["lr"]
            for parameter in group["params"]:
                parameter.mul_(1 - rate * group["weight_decay"]).add_(parameter.grad, alpha=-rate)
        update.adaptation.after_step(update.step, update.steps)
        update.optimizer.zero_grad(set_to_none=True)


def seed_of(seed: int, step: int) -> int:
    """Return the seed of a step of a run, of 32 bits as the generator of a CPU reads no more."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:4], "big")


def directions(update: Update, seed: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Iterate over (parameter, z): the same z for the same seed, drawn on the parameter's device."""
    generators: dict[torch.device, torch.Generator] = {}
    for parameter in _parameters(update):
        device = parameter.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        z = torch.randn(parameter.shape, generator=generators[device], device=device, dtype=torch.float32)
        yield parameter, z.to(parameter.dtype)


def _parameters(update: Update) -> list[nn.Parameter]:
    return [parameter for group in update.optimizer.param_groups for parameter in group["params"]]
