"""A small model with an adapter and its loop, for the laws of objectives and strategies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from peftkit.adaptation import Adaptation, attach
from peftkit.data.batches import Batches
from peftkit.data.encode import Encoded
from peftkit.data.example import LABEL, Example, Turn
from peftkit.engine.engine import Arrangement, Engine
from peftkit.engine.passes import Plain
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.objectives import OBJECTIVES, Objective
from peftkit.recipe import TrainSection
from peftkit.training.loop import Loop
from peftkit.training.nesting import make_loop

CPU = torch.device("cpu")
CLASSES = 3
START = list(range(20, 28))


def rows(trained: bool = True) -> list[Encoded]:
    """Rows of unequal length, some of which begin alike and predict the same; not `trained` on anything, or mostly."""
    texts = [[*START, 40, 41, 42], [*START, 40, 41, 50], [*START, 40], [7, 8, 9, 10], [30, 7], [60, 61, 62, 63, 64]]
    return [
        Encoded(ids, [-100, *ids[1:]] if trained else [-100] * len(ids), number % CLASSES)
        for number, ids in enumerate(texts)
    ]


def objective_named(name: str) -> Objective:
    """Build an objective with its defaults, which has seen examples of each class."""
    examples = [Example(f"{number}", (Turn("user", "a text"),), meta={LABEL: number}) for number in range(CLASSES)]
    return OBJECTIVES[name]().settle(examples)


def adapted(objective: Objective, method: Any = None) -> Adaptation:
    """Attach a method, by default LoRA moved from its start, and what the objective trains beside it."""
    adaptation = attach(
        tiny("llama"), [method or METHODS["lora"].from_options({"rank": 4, "targets": "linear"})], seed=1
    )
    torch.manual_seed(0)
    module = objective.build(adaptation.layout)
    if module is not None:
        adaptation.modules["objective"] = module
    with torch.no_grad():
        for _, parameter in adaptation.parameters() if method is None else ():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return adaptation


def passes(objective: Objective, arrangement: Arrangement) -> Plain:
    """Return passes over a fresh adapted model, the same each time."""
    adaptation = adapted(objective)
    return Plain(Engine(adaptation.model, arrangement), objective, adaptation, CPU)


def loop(objective: Objective, encoded: Sequence[Encoded], **train: Any) -> Loop:
    """Build the loop of a run over the rows."""
    adaptation = adapted(objective, METHODS["lora"].from_options({"rank": 4, "targets": "linear"}))
    section = TrainSection(**{"batch_examples": 3, "schedule": "constant", **train})
    batches = Batches(encoded, batch_examples=3, collate=objective.collate)
    engine = Engine(adaptation.model, Arrangement())
    return make_loop(engine, adaptation, batches, section, pad_id=0, device=CPU, objective=objective)
