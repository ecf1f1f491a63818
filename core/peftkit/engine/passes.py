"""How the gradients of an objective are computed: `Plain`, and around it what compiles it or fits it into memory.

Whoever needs gradients or losses of micro-batches asks `Passes`, and nobody below knows who asked. A wrapper holds the
passes that it wraps and nothing of the loop; what a recipe combines is how they are nested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from peftkit.adaptation import Adaptation
from peftkit.data.batches import Batch
from peftkit.device import autocast, mixes
from peftkit.engine.counts import Counts, counts, total
from peftkit.engine.engine import Engine
from peftkit.engine.packed_batch import PackedBatch
from peftkit.engine.views import Views, add_both
from peftkit.errors import PeftkitError
from peftkit.objectives import Loss, Objective

PACK, FORWARD, BACKWARD, REST = "layout", "forward", "backward", "update"
"""What a pass over a micro-batch does, in its order; `rest` is whatever follows."""
Phase = Callable[[str], None]
"""Hears which of them begins."""
ADVICE = (
    "lower train.batch_tokens (and raise train.accumulation), lower train.max_length, set "
    "train.gradient_checkpointing=true, or set train.memory=auto, which does as much of that as it takes"
)


class OutOfMemory(PeftkitError):  # noqa: N818
    """The device has too little memory for a step, which has changed nothing."""

    def __init__(self, shape: tuple[int, int], advice: str = ADVICE, when: str = ""):
        self.shape, self.advice = shape, advice
        self.place = f"{when}on a batch of {shape[0]} rows of {shape[1]} tokens"
        super().__init__(f"the device ran out of memory {self.place}: {advice}. The last checkpoint stays as it was.")

    def at(self, step: int) -> OutOfMemory:
        """Return the error that also says in which step it was."""
        return OutOfMemory(self.shape, self.advice, f"at step {step} ")


class Result(NamedTuple):
    """What passes over micro-batches came to."""

    loss: float
    """The sum of the losses' terms."""
    weight: int
    """How many terms there were."""
    counts: Counts
    metrics: Mapping[str, Tensor]
    """Those of the objective, concatenated."""
    facts: Mapping[str, Any] = {}
    """What the log tells of how it was computed."""


class Passes:
    """Computes losses and gradients of micro-batches, at once and with nothing to get ready for or to remember."""

    plain: Plain
    """What is innermost."""

    def open(self) -> None:
        """Get ready before the first step; leaves no trace in the run."""

    def close(self) -> None:
        """Let go of what is held from step to step; may be called twice, and passes may follow."""

    def backward(self, batches: Sequence[Batch], normaliser: int) -> Result:
        """Add the gradients of the batches' losses, each divided by `normaliser`, and those of penalties.

        Raises OutOfMemory where the device has too little for it.
        """
        raise NotImplementedError

    def evaluate(self, batches: Iterable[Batch], *, as_trained: bool = False) -> Result:
        """Measure the batches without gradients and dropout, as the objective evaluates or `as_trained` on."""
        raise NotImplementedError

    def pieces(self, batch: Batch) -> list[Batch]:
        """Return what of a batch is computed at once."""
        return [batch]

    def state(self) -> dict[str, Any]:
        """Return plain facts for a checkpoint."""
        return {}

    def load_state(self, facts: Mapping[str, Any]) -> None:
        """Go on from the facts of a checkpoint."""


class Plain(Passes):
    """Passes as an engine computes them."""

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        adaptation: Adaptation,
        device: torch.device,
        precision: str = "fp32",
        phase: Phase = lambda name: None,
    ):
        self.plain = self
        self.engine, self.objective, self.adaptation = engine, objective, adaptation
        self.device, self.precision, self.phase = device, precision, phase
        self.scale = 1.0
        """What the losses are multiplied by before their gradients are taken; whoever sets it divides these by it."""
        self.module: nn.Module | None = adaptation.modules.get("objective")
        self.casts = precision if mixes(engine.model) else "fp32"
        """What autocast is asked for: nothing where the weights are held in what is computed in."""
        self.parameters = [parameter for _, parameter in adaptation.parameters()]
        if adaptation.agreement() and not objective.generates():
            raise PeftkitError(
                f"a method of this run compares two passes by what they generate, and the objective '{objective.name}' "
                "does not: switch that off (consistency: 0), or take an objective that generates."
            )

    def close(self) -> None:
        """Give back the memory that is kept from step to step."""
        self.engine.release_memory()

    def backward(self, batches: Sequence[Batch], normaliser: int) -> Result:
        """Add the gradients of the batches' losses, each divided by `normaliser`, and those of penalties."""
        counted, losses = [], []
        summed = torch.zeros((), device=self.device)
        self._train(True)
        with _told_out_of_memory(batches):
            for batch in batches:
                self.phase(PACK)
                packed = self.engine.pack(batch)
                counted.append(counts(batch, packed))
                losses.append(self.add_gradients(packed.to(self.device), normaliser))
                summed += losses[-1].sum
            self.add_penalty()
        return result(losses, summed.item(), counted)

    def add_gradients(self, packed: PackedBatch, normaliser: int) -> Loss:
        """Add the gradients of one micro-batch, packed and on the device; returns its loss without the graph."""
        weight = self.adaptation.agreement()

        def once() -> Loss:
            with self.engine.running(packed):
                self.phase(FORWARD)
                if weight:
                    return self._compared(packed, self.scale / normaliser, weight)
                loss = self._with_terms(self.loss(packed), packed)
                self.phase(BACKWARD)
                (loss.sum / normaliser * self.scale).backward()
                self.phase(REST)
            return loss._replace(sum=loss.sum.detach())

        return self._each(once)

    def _compared(self, packed: PackedBatch, share: float, weight: float) -> Loss:
        """Add `share` times the gradients of a loss and of `weight` times how far a second pass is from the first."""
        with autocast(self.device, self.casts):
            views = Views(self.adaptation.context, partial(self._forward, packed))
            self.phase(BACKWARD)
            return add_both(views, packed, partial(self.objective.loss, batch=packed), share, weight)

    def _with_terms(self, loss: Loss, packed: PackedBatch) -> Loss:
        """Add what adapters add to the loss of this pass, within the engine's `running`."""
        term = self.adaptation.aux_loss()
        return loss if term is None else loss._replace(sum=loss.sum + term * packed.trained)

    def _each(self, once: Callable[[], Loss]) -> Loss:
        """Add up the losses of a pass and of the further ones that methods want."""
        loss = once()
        for context in self.adaptation.further():
            with context:
                loss = loss._replace(sum=loss.sum + once().sum)
        return loss

    def loss(self, packed: PackedBatch) -> Loss:
        """Run the forward pass of one micro-batch to its loss, within the engine's `running`."""
        with autocast(self.device, self.casts), self.engine.keeping(self.device):
            return self.objective.loss(self.engine.forward(packed, self.module), packed)

    def _forward(self, packed: PackedBatch) -> Any:
        with self.engine.keeping(self.device):
            return self.engine.forward(packed, self.module)

    def add_penalty(self) -> None:
        """Add the gradients of what methods add to the loss of a step."""
        penalty = self.adaptation.penalty()
        if penalty is not None:
            (penalty * self.scale).backward()

    def evaluate(self, batches: Iterable[Batch], *, as_trained: bool = False) -> Result:
        """Measure the batches without gradients and dropout, as the objective evaluates or `as_trained` on."""
        counted, losses, summed = [], [], 0.0
        self._train(False)
        try:
            for batch in batches:
                self.phase(PACK)
                packed = self.engine.pack(batch)
                counted.append(counts(batch, packed))
                self.phase(FORWARD)
                with _told_out_of_memory([batch]):
                    losses.append(self.measure(packed.to(self.device), as_trained=as_trained))
                    summed += losses[-1].sum.item()
                self.phase(REST)
        finally:
            self._train(True)
        return result(losses, summed, counted)

    def measure(self, packed: PackedBatch, *, as_trained: bool = False) -> Loss:
        """Measure one micro-batch, packed and on the device, in the mode that the model is in."""
        function = self.objective.loss if as_trained else self.objective.evaluate

        def once() -> Loss:
            with torch.no_grad(), autocast(self.device, self.casts), self.engine.running(packed):
                loss = function(self.engine.forward(packed, self.module), packed)
                return self._with_terms(loss, packed) if as_trained else loss

        return self._each(once) if as_trained else once()

    def _train(self, training: bool) -> None:
        self.engine.model.train(training)
        if self.module is not None:
            self.module.train(training)


class Wrapper(Passes):
    """Passes around others, which do what it does not."""

    def __init__(self, inner: Passes):
        self.inner, self.plain = inner, inner.plain

    def open(self) -> None:
        """Get the inner passes ready."""
        self.inner.open()

    def close(self) -> None:
        """Close the inner passes."""
        self.inner.close()

    def backward(self, batches: Sequence[Batch], normaliser: int) -> Result:
        """Add gradients as the inner passes do."""
        return self.inner.backward(batches, normaliser)

    def evaluate(self, batches: Iterable[Batch], *, as_trained: bool = False) -> Result:
        """Measure as the inner passes do."""
        return self.inner.evaluate(batches, as_trained=as_trained)

    def pieces(self, batch: Batch) -> list[Batch]:
        """Return what the inner passes compute at once."""
        return self.inner.pieces(batch)

    def state(self) -> dict[str, Any]:
        """Return the inner passes' facts."""
        return self.inner.state()

    def load_state(self, facts: Mapping[str, Any]) -> None:
        """Hand the facts on."""
        self.inner.load_state(facts)


def result(losses: Sequence[Loss], summed: float, counted: Sequence[Counts]) -> Result:
    """Add up the losses of micro-batches."""
    names = {name for loss in losses for name in loss.metrics}
    metrics = {name: torch.cat([loss.metrics[name].reshape(-1) for loss in losses]) for name in sorted(names)}
    return Result(summed, sum(loss.weight for loss in losses), total(counted), metrics)


@contextmanager
def _told_out_of_memory(batches: Sequence[Batch]) -> Iterator[None]:
    """Raise OutOfMemory, with the largest of the batches, for torch's own error."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        rows, width = max((tuple(batch.input_ids.shape) for batch in batches), key=math.prod)
        raise OutOfMemory((rows, width)) from None


def out_of_memory(error: RuntimeError) -> bool:
    """Say whether the error is torch's for want of memory; on the CPU only its text tells."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
