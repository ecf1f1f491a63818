"""What training calls of a method, before, within and after its steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftkit.layout import Layout
    from peftkit.ports.adapter import Adapter


@dataclass(frozen=True)
class Phase:
    """A stretch of steps, from `begin` on and below `end`, with a schedule of the learning rate of its own."""

    begin: int
    end: int
    forget: float = 1.0
    """The share of the optimizer's moments, the smallest first, that it begins with at zero."""


class Hooks:
    """The hooks of training; each does nothing by default."""

    @property
    def idle_hooks(self) -> tuple[str, ...]:
        """The hooks of its own that do nothing with these options."""
        return ()

    @property
    def reads_originals(self) -> bool:
        """Whether `prepare` looks at weights as they were before they were packed, which are kept until then."""
        return False

    def prepare(self, model: nn.Module, adapters: Mapping[str, Adapter], batches: Iterable[Any]) -> None:
        """Look at the model and the batches of the first epoch before the first step of a run.

        Batches are made while they are iterated over: one that is not asked for costs nothing. What it sees has to
        stand in the adapters' state, because a resumed run does not call this again.
        """

    def phase(self, step: int, steps: int) -> Phase:
        """Return the phase that step `step` of `steps` lies in; by default there is one."""
        return Phase(0, steps)

    def penalty(self, adapters: Mapping[str, Adapter]) -> Tensor | None:
        """Return a term added to the loss of every step, or None."""
        return None

    def agreement(self) -> float:
        """Return the weight of the divergence between two passes over each micro-batch, by default 0: one pass.

        Adapters draw anew in the second one, whose number is `context.view`. The divergence is the mean of KL(p, q) and
        KL(q, p) of the next-token distributions, which needs an objective that generates.
        """
        return 0.0

    def further(self, adapters: Mapping[str, Adapter]) -> Sequence[AbstractContextManager[None]]:
        """Return contexts, within each of which every micro-batch runs once more; those losses are added to its own."""
        return ()

    def after_backward(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        """Act on the gradients of optimizer step `step` of `steps`, before clipping."""

    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        """Act after optimizer step `step` of `steps`."""

    def told(self, adapters: Mapping[str, Adapter]) -> Mapping[str, Any]:
        """Return plain facts of where a schedule stands after a step, which the log and the display tell."""
        return {}

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        """Bring the adapters to the form that is saved after training, which `finished` describes."""

    def groups(
        self, layout: Layout, parameters: Sequence[tuple[str, nn.Parameter]], learning_rate: float
    ) -> list[dict[str, Any]]:
        """Return optimizer groups, each `params` as (key, parameter) pairs and `lr`.

        A group may name its `optimizer` and hold that one's options; without, it gets the default one.
        """
        return [{"params": list(parameters), "lr": learning_rate}]
