"""How an optimizer step is made of passes: a registry, each entry a frozen dataclass of options in a file of its own.

An entry `Mine(Strategy, name="mine")` says what a recipe's `train.strategy: mine` does, in
`step(passes, batches, normaliser, update)`: it computes what it needs of the micro-batches by `passes.backward` (which
adds gradients) or `passes.evaluate(batches, as_trained=True)` (losses alone, in evaluation mode), changes the trained
parameters, and returns a `Step`. The learning rate of the moment stands in the groups of `update.optimizer`, which
makes its states when it first steps: a strategy that never calls it has none. What a resumed run needs beyond the
optimizer, adapters and random states follows from `update.step` and the run's seed. `needs()` says what a step holds
beside the weights, and which keys of `train` say nothing to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import nn

from peftkit.adaptation import Adaptation
from peftkit.data.batches import Batch
from peftkit.engine.passes import Passes, Result
from peftkit.errors import PeftkitError
from peftkit.optim.build import Optimizers
from peftkit.options import Options
from peftkit.registry import Registry

STRATEGIES: Registry[type[Strategy]] = Registry("strategy", "peftkit.strategies")
DEFAULT = "standard"
"""The strategy of a recipe that names none."""


class Diverged(PeftkitError):  # noqa: N818
    """The loss or the gradient of a step is not finite; the step has changed nothing."""


@dataclass(frozen=True)
class Update:
    """What an optimizer step works on, and which one it is."""

    adaptation: Adaptation
    optimizer: Optimizers
    parameters: Sequence[nn.Parameter]
    """All that are trained, in the order of the optimizer's groups."""
    clip: float | None
    """The largest norm of the gradient; None leaves it as it is."""
    seed: int
    """The run's."""
    step: int
    """Steps done before."""
    steps: int
    """Steps of the whole run."""
    rate: float
    """The learning rate of the first group."""

    def check(self, loss: float, norm: float = 0.0) -> None:
        """Raise Diverged for a loss or gradient norm that is not finite."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        subject = f"the gradient norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        raise Diverged(
            f"{subject} at step {self.step + 1} of {self.steps} (learning rate {self.rate:.3g}): the run stops before "
            "this step changes anything, and the last checkpoint stays as it was. Try a lower train.learning_rate, a "
            "longer train.warmup, a smaller train.clip, or train.precision=fp32."
        )


class Needs(NamedTuple):
    """What a step of a strategy needs."""

    backward: bool = True
    """Backward passes: activations that are kept for them, and gradients."""
    optimizer: bool = True
    """Steps of the optimizer, and its states."""
    copies: int = 0
    """Copies of what is trained that are held during the passes."""
    ignores: tuple[str, ...] = ()
    """Keys of `train` that say nothing to it: a recipe that sets one is refused."""


class Step(NamedTuple):
    """What a step came to."""

    result: Result
    """Of the passes that tell the loss."""
    norm: float
    """The norm of the gradient before clipping, or of what stands for it."""


@dataclass(frozen=True, kw_only=True)
class Strategy(Options, registry=STRATEGIES):
    """The options of one strategy as a recipe writes them, and its step."""

    summary: ClassVar[str] = ""
    """One sentence."""

    def needs(self) -> Needs:
        """Say what a step needs; by default what backpropagation and an optimizer do."""
        return Needs()

    def check(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raise PeftkitError for groups of an optimizer that this strategy has no use for."""
        brought = sorted({group["optimizer"] for group in groups if "optimizer" in group})
        if brought and not self.needs().optimizer:
            raise PeftkitError(
                f"train.strategy: '{self.name}' takes its steps without an optimizer, and a method of this recipe is "
                f"its own optimizer, '{brought[0]}': take another method or strategy."
            )

    def step(self, passes: Passes, batches: Sequence[Batch], normaliser: int, update: Update) -> Step:
        """Take one optimizer step on the micro-batches, whose losses have `normaliser` terms.

        Raises Diverged, before anything changes, for a loss or gradient that is not finite.
        """
        raise TypeError(f"the strategy '{self.name}' does not say how a step is made")
