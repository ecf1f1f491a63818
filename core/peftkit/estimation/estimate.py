"""The memory that a run will take, part by part, measured by running one step on tensors that hold nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from peftkit.adaptation import Adaptation
from peftkit.data.batches import Batches
from peftkit.device import choose_device, choose_precision
from peftkit.engine.memory_plan import MemoryPlan, checkpoint_gradients, memory_plans, recompute
from peftkit.estimation.asked import strategy_of
from peftkit.estimation.fit import heaviest, room
from peftkit.estimation.process import drawing_memory, loading_memory, process_memory, size
from peftkit.estimation.step import StepMemory, Unmeasured, largest, run_step
from peftkit.machine import resident_memory
from peftkit.models.loaded import LoadedModel
from peftkit.objectives import Objective
from peftkit.optim.build import state_bytes
from peftkit.recipe import Recipe

DRAWING = 64 << 20
"""More bytes than drawing the loss curve takes."""
MOMENTS = {"loading": "while the model is loaded", "step": "in a training step", "finish": "when the run is finished"}
"""In words when the peak of a run is."""
MEASURED = ("activations", "temporary")
"""The parts that are known from running a step."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by part on the device that trains: the size that each part grows to, and what of it is there at the peak.

    The parts are `process` (Python and the libraries; on the CPU alone), `weights` (packed where they are quantized,
    the adapters among them), `optimizer` (its states), `gradients`, `activations` (what the forward pass keeps for the
    backward pass), and `temporary` (all else that is held at the peak: logits, unpacked weights, what loading needs,
    gaps in the heap).
    """

    device: str
    precision: str
    rows: int
    tokens: int
    """Of the largest micro-batch: rows, and padded tokens of a row."""
    moment: str
    """When the peak is: in `loading`, in a training `step`, or at the `finish`, when the loss curve is drawn."""
    parts: dict[str, int]
    at_peak: dict[str, int]
    memory_plan: str | None = None
    """What the run gives up for memory, where the recipe has `train.memory`."""
    allowed: int | None = None
    """Bytes that the run may take there."""
    unknown: str | None = None
    """Why activations and temporary tensors could not be measured, where they could not: they count nothing then."""

    @property
    def peak(self) -> int:
        """The most bytes at one moment."""
        return sum(self.at_peak.values())

    def or_higher(self, moment: str, optimizer: int, temporary: int) -> Estimate:
        """Return the estimate with the peak at `moment`, if what is held then beside the weights is more."""
        there = {"process": self.parts["process"], "weights": self.parts["weights"], "optimizer": optimizer}
        at_peak = {**dict.fromkeys(self.parts, 0), **there, "temporary": temporary}
        if sum(at_peak.values()) <= self.peak:
            return self
        parts = {**self.parts, "temporary": max(temporary, self.parts["temporary"])}
        return replace(self, moment=moment, parts=parts, at_peak=at_peak)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, the peak among them."""
        return {
            "peak_bytes": self.peak,
            "peak_in": self.moment,
            "device": self.device,
            "precision": self.precision,
            "micro_batch": {"rows": self.rows, "tokens": self.tokens},
            "parts": {name: {"bytes": size, "at_peak": there} for name, (size, there) in self.told().items()},
            **({} if self.memory_plan is None else {"memory_plan": self.memory_plan, "allowed_bytes": self.allowed}),
            **({} if self.unknown is None else {"unknown": self.unknown}),
        }

    def told(self) -> dict[str, tuple[int, int] | tuple[None, None]]:
        """Return the size that each part grows to and what of it is there at the peak; None for what is unknown."""
        unknown = MEASURED if self.unknown is not None else ()
        told = {name: (size, self.at_peak[name]) for name, size in self.parts.items()}
        return {**told, **dict.fromkeys(unknown, (None, None))}


def estimate(
    recipe: Recipe, loaded: LoadedModel, adaptation: Adaptation, batches: Batches, objective: Objective
) -> Estimate:
    """Estimate the memory of a run of `recipe`, whose model is loaded on the meta device and has its adapters."""
    section, model = recipe.train, cast(nn.Module, loaded.model)
    device = choose_device(section.device)
    precision = choose_precision(section.precision, device, model).name
    process = process_memory(model, device, precision)
    weights = sum(size(tensor) for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())
    groups, strategy = adaptation.groups(section.learning_rate, section.weight_decay), strategy_of(section)
    strategy.check(groups)
    needs, trained = strategy.needs(), sum(size(parameter) for _, parameter in adaptation.parameters())
    optimizer = state_bytes(groups, section.optimizer, device=device) if needs.optimizer else 0
    if section.gradient_checkpointing:
        checkpoint_gradients(model)
    whole = largest(batches, model, loaded.tokenizer.pad_token_id)
    # What is free is so beside what this process holds.
    held = resident_memory() if device.type == "cpu" else 0
    allowed = None if section.memory is None else held + room(section.memory, device, held)

    def under(plan: MemoryPlan) -> Estimate:
        batch, passes = heaviest(plan, whole, min(section.accumulation, len(batches.plan(0))))
        if section.memory is not None:
            recompute(model, plan.recomputed)
        options = {"passes": passes, "objective": objective, "backward": needs.backward}
        unknown = None
        try:
            step = run_step(model, adaptation, batch, section, device, precision, **options)
        except Unmeasured as error:
            step, unknown = StepMemory(0, dict.fromkeys(MEASURED, 0)), str(error)
        step = step.elsewhere() if plan.offloaded else step
        parts = {
            "process": process,
            "weights": weights,
            "optimizer": optimizer,
            "gradients": trained if needs.backward else 0,
            "activations": step.activations,
            "temporary": step.at_peak["temporary"] + step.gaps + needs.copies * trained,
        }
        rows, tokens = batch.input_ids.shape
        at_peak = {**parts, **step.at_peak, "temporary": parts["temporary"]}
        name = None if allowed is None else str(plan)
        return Estimate(device.type, precision, rows, tokens, "step", parts, at_peak, name, allowed, unknown)

    plans = memory_plans(model, batches, device, checkpointing=section.gradient_checkpointing)
    plans = plans if section.memory is not None else plans[:1]
    fits = (one for one in map(under, plans) if allowed is None or one.unknown or one.peak <= allowed)
    chosen = next(fits, None) or under(plans[-1])
    if device.type != "cpu":
        return chosen
    calibration = recipe.calibration
    known = calibration.weights is not None
    shown = (0, 0) if known else (min(calibration.samples, len(batches)), int(batches.lengths.max()))
    chosen = chosen.or_higher("loading", 0, loading_memory(loaded, shown, recipe.pruning is not None) - weights)
    # Drawing takes longer than the rest of an estimate, and never takes as much as a model of some size.
    small = chosen.peak - process - weights - optimizer < DRAWING
    return chosen.or_higher("finish", optimizer, drawing_memory()) if small else chosen
