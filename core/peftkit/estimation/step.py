"""What a training step takes, measured by running its passes on tensors that hold nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from peftkit.adaptation import Adaptation
from peftkit.data.batches import Batch, Batches
from peftkit.engine.calls import check_calls
from peftkit.engine.chunked_head import CHUNK
from peftkit.engine.engine import Arrangement, Engine, fallbacks, possible
from peftkit.engine.head import logits_of
from peftkit.engine.passes import BACKWARD, Plain
from peftkit.engine.proof import FAULTS
from peftkit.errors import PeftkitError
from peftkit.estimation.asked import arrangement_of, objective_of
from peftkit.estimation.live import Live, without_storage
from peftkit.layout import Layout
from peftkit.models.configuration import one_line
from peftkit.objectives import Objective
from peftkit.recipe import TrainSection

FEW = 8
"""Tokens of the pass that shows which modules are called."""
LARGEST = 64
"""So many micro-batches of the most padded tokens are looked at more closely."""
GAPS = {"cpu": 0.25}
"""What an allocator holds beyond the tensors of a step, as a part of them, by device: gaps in the heap of a CPU."""


@dataclass(frozen=True)
class StepMemory:
    """What a step holds in bytes: after its forward pass, and at its peak (`gradients`, `activations`, `temporary`)."""

    activations: int
    at_peak: dict[str, int]
    gaps: int = 0
    """What the allocator is allowed beyond that."""

    def elsewhere(self) -> StepMemory:
        """Return the step with its activations off the device."""
        return StepMemory(0, {**self.at_peak, "activations": 0}, self.gaps)


class Unmeasured(PeftkitError):  # noqa: N818
    """A step fails on tensors that hold nothing, though it may run on others."""


def run_step(
    model: nn.Module,
    adaptation: Adaptation,
    batch: Batch,
    section: TrainSection,
    device: torch.device,
    precision: str,
    passes: int = 1,
    arrangement: Arrangement | None = None,
    objective: Objective | None = None,
    backward: bool = True,
) -> StepMemory:
    """Run `passes` forward and backward passes on a batch as the training loop does, without storage or computing.

    Without `backward` it is a forward pass in evaluation mode.

    With more than one, the gradients of the first are there in those that follow. Without an `arrangement` it is the
    first that runs of those that a run would try, from what the recipe asks for down to the model's own code. Raises
    Unmeasured where none runs, and PeftkitError for what a run refuses too.
    """
    lengths = batch.attention_mask.sum(1).tolist()
    if bool(batch.attention_mask.all()):
        # transformers leaves out a mask without padding, and can tell that of a boolean one alone, if it has storage.
        batch = replace(batch, attention_mask=batch.attention_mask.bool().to(device))
    wanted = possible(arrangement_of(section), model, lengths, adaptation.methods)
    ways = list(fallbacks(wanted)) if arrangement is None else [arrangement]
    objective = objective or objective_of(section)
    for way in ways:
        try:
            plain = Plain(Engine(model, way), objective, adaptation, device, precision)
            return _measured(plain, batch, passes if backward else 0)
        except PeftkitError:
            if way == ways[-1]:
                raise
        except FAULTS as error:
            if way != ways[-1]:
                continue
            raise Unmeasured(_unrun(model, error)) from error
    raise AssertionError("no way to compute a micro-batch")


def _measured(plain: Plain, batch: Batch, passes: int) -> StepMemory:
    """Measure passes over a batch; without any, a forward pass in evaluation mode."""
    model, adaptation = plain.engine.model, plain.adaptation
    packed = plain.engine.pack(batch)
    moments: list[int] = []
    training = model.training
    model.train(passes > 0)
    try:
        parts = nn.ModuleList([model, *adaptation.modules.values()])
        with without_storage(parts, plain.device) as state, Live(state) as live:

            def phase(name: str) -> None:
                if name == BACKWARD:
                    moments.append(len(live.events))

            plain.phase = phase
            if not passes:
                plain.measure(packed.to(plain.device), as_trained=True)
            for _ in range(passes):
                plain.add_gradients(packed.to(plain.device), max(1, batch.trained))
            if passes:
                plain.add_penalty()
            gradients = {live.number(tensor.grad) for tensor in state if tensor.grad is not None}
    finally:
        model.train(training)
    forward = live.alive(moments[-1]) if moments else {}
    kept = {number: size for number, size in forward.items() if number not in gradients}
    sizes = {"gradients": 0, "activations": 0, "temporary": 0}
    for number, size in live.alive(live.highest()).items():
        kind = "gradients" if number in gradients else "activations" if number in kept else "temporary"
        sizes[kind] += size
    return StepMemory(sum(kept.values()), sizes, int(GAPS.get(plain.device.type, 0.0) * sum(sizes.values())))


def foretell(model: nn.Module, batch: Batch, section: TrainSection, device: torch.device) -> list[str]:
    """Return the notices of a run that show in its plan: adapters that no pass reaches, parts of the engine left off.

    Raises PeftkitError, as the run would, for adapters on modules that the model never calls. Of a model that does not
    run without storage that is left to the run, and told.
    """
    inputs = {"input_ids": batch.input_ids[:1, :FEW], "attention_mask": batch.attention_mask[:1, :FEW]}
    training = model.training
    model.eval()
    try:
        with without_storage(model, device) as state, Live(state), torch.no_grad():
            given = {name: tensor.to(device) for name, tensor in inputs.items()}
            notices = check_calls(model, lambda: logits_of(model(**given, use_cache=False)))[1]
    except PeftkitError:
        raise
    except FAULTS as error:
        unrun = _unrun(model, error)
        notices = [f"whether the model calls each adapted module shows at the start of the run alone: {unrun}."]
    finally:
        model.train(training)
    return notices + Engine(model, arrangement_of(section)).notices


def _unrun(model: nn.Module, error: Exception) -> str:
    return f"{type(model).__name__} does not run without storage: {one_line(error).rstrip('.')}"


def largest(batches: Batches, model: nn.Module, pad_id: int) -> Batch:
    """Return the micro-batch of the first epoch that takes most memory.

    Hidden states come with each token and logits with those that are trained on, a chunk of them at a time: which of
    them weighs more is judged by the sizes of the model.
    """
    config: Any = getattr(model, "config").get_text_config()  # noqa: B009
    hidden = 16 * config.hidden_size * max(1, len(Layout(model).blocks))

    def weight(batch: Batch) -> int:
        return batch.tokens * hidden + 3 * min(batch.trained, CHUNK) * config.vocab_size

    plan = batches.plan(0)
    first = np.argsort(-batches.padded(plan), kind="stable")[:LARGEST].tolist()
    return max((batches.collate(plan[at], pad_id) for at in first), key=weight)
