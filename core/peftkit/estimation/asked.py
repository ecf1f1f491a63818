"""What a recipe asks of the engine: an arrangement of micro-batches, an objective, a strategy."""

from __future__ import annotations

import dataclasses

from peftkit.engine.engine import Arrangement
from peftkit.objectives import DEFAULT, OBJECTIVES, Objective
from peftkit.recipe import TrainSection
from peftkit.recipe.entries import entry
from peftkit.recipe.section import Entry
from peftkit.strategies import STRATEGIES, Strategy


def arrangement_of(section: TrainSection) -> Arrangement:
    """Return how micro-batches are to be computed."""
    alone = section.batch_examples == 1
    return Arrangement(section.packing, section.shared_prefixes, fused=section.fused_elementwise, alone=alone)


def objective_of(section: TrainSection, choice: Entry = DEFAULT) -> Objective:
    """Build the objective that a recipe chooses; options that the section has too are the section's."""
    name, options = entry(choice)
    fields = [field.name for field in dataclasses.fields(OBJECTIVES[name])]
    shared = {key: getattr(section, key) for key in fields if key in TrainSection.model_fields}
    return OBJECTIVES[name].from_options({**options, **shared})


def strategy_of(section: TrainSection) -> Strategy:
    """Build the strategy that a recipe chooses."""
    name, options = entry(section.strategy)
    return STRATEGIES[name].from_options(options)
