"""From a recipe's section to the loop over its passes: what the recipe combines is how they are nested, here alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from peftkit.adaptation import Adaptation
from peftkit.data.batches import Batch, Batches
from peftkit.engine.compiled import Compiled
from peftkit.engine.engine import Engine
from peftkit.engine.memory_plan import memory_plans
from peftkit.engine.passes import Passes, Phase, Plain
from peftkit.engine.retrying import Retrying
from peftkit.engine.scaled import Scaled
from peftkit.estimation.asked import objective_of, strategy_of
from peftkit.estimation.fit import Fit
from peftkit.estimation.step import largest
from peftkit.objectives import Objective
from peftkit.recipe import TrainSection
from peftkit.training.loop import Loop


def make_loop(
    engine: Engine,
    adaptation: Adaptation,
    batches: Batches,
    section: TrainSection,
    *,
    pad_id: int,
    device: torch.device,
    precision: str = "fp32",
    objective: Objective | None = None,
    notice: Callable[[str], None] = lambda text: None,
    phase: Phase = lambda name: None,
) -> Loop:
    """Build the loop of a run over the passes that its section asks for.

    Without an `objective` it is the default one. `notice` receives what a person should know, `phase` what the passes
    are at.
    """
    plain = Plain(engine, objective or objective_of(section), adaptation, device, precision, phase)
    passes = _nested(plain, batches, section, pad_id, notice)
    return Loop(passes, adaptation, batches, section, strategy_of(section), pad_id=pad_id)


def _nested(
    plain: Plain, batches: Batches, section: TrainSection, pad_id: int, notice: Callable[[str], None]
) -> Passes:
    passes: Passes = plain
    model = plain.engine.model

    def first() -> Batch:
        # Of the passes that are outermost in the end.
        return passes.pieces(batches.collate(batches.plan(0)[0], pad_id))[0]

    if section.compile:
        passes = Compiled(passes, first, notice)
    if plain.precision == "fp16":
        passes = Scaled(passes)
    if section.memory is not None:
        plans = memory_plans(model, batches, plain.device, checkpointing=section.gradient_checkpointing)
        passes = Retrying(passes, plans, Fit(section, lambda: largest(batches, model, pad_id), notice), notice)
    return passes
