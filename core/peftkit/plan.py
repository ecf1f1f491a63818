"""What a recipe would do, without a weight being read: what is trained, on what, how long, in how much memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch

from peftkit.adaptation import Adaptation
from peftkit.adaptation import notices as told
from peftkit.assembly import assemble
from peftkit.data.encode import IGNORED, Encoded
from peftkit.estimation.asked import objective_of
from peftkit.estimation.estimate import Estimate, estimate
from peftkit.estimation.step import foretell
from peftkit.keys import plain
from peftkit.recipe import Recipe
from peftkit.tasks.source import load as load_data
from peftkit.training.encoded import Encoder, Working
from peftkit.training.preparation import add_module, check_length
from peftkit.training.reports import check_loggers
from peftkit.training.scoring import check
from peftkit.training.windows import count_steps, steps_of

READ = 1 << 16
"""Examples of a set that no run has encoded yet from which its plan follows, where it has more."""


@dataclass
class Plan:
    """What `peft validate` and `--dry-run` show."""

    model: str
    architecture: str
    methods: tuple[str, ...]
    matched: dict[str, tuple[int, str]]
    """Adapted modules by role, or own parameters: their number and one of them."""
    trainable: int
    total: int
    dataset: str
    examples: int
    dropped: int
    steps: int
    epochs: float
    tokens: int
    """Non-padding tokens of the whole run."""
    example: list[tuple[str, bool]]
    """The first example decoded: (text, whether it is trained on)."""
    memory: Estimate
    """Estimated bytes by part."""
    rates: list[tuple[float, str]] = field(default_factory=list)
    """The learning rate of each method, and where it comes from."""
    adapters: list[str] = field(default_factory=list)
    """The trained adapter that the run goes on from, and those that its methods build from, each with its sites."""
    notices: list[str] = field(default_factory=list)


def plan(recipe: Recipe, working: Working = lambda text: None) -> Plan:
    """Plan a recipe on the meta device; what would stop the run at its start is raised as a PeftkitError.

    `working` receives how far the reading of data is.
    """
    section = recipe.train
    check(recipe)
    check_loggers(recipe)
    assembled = assemble(recipe, weights=False)
    adaptation, template = assembled.adaptation, assembled.template
    data, encoder = load_data(recipe.dataset, "train"), Encoder(recipe, template, assembled.tokenizer, working)
    encoded, objective, batches = encoder.train(data, objective_of(section, recipe.objective), most=READ)
    factor = encoded.factor
    add_module(adaptation, objective, section.seed, torch.device("meta"), recipe.start_folder)
    check_length(assembled.model, encoded.rows, adaptation.moved())
    steps = count_steps(batches, section.accumulation, section.epochs, section.max_steps, factor)
    epochs = steps / steps_of(batches.plan(0), section.accumulation, factor)
    memory = estimate(recipe, assembled, adaptation, batches, objective)
    notices = [] if data.name == recipe.dataset.name else [f"dataset: {data.name} is read ({data.origin})"]
    if encoded.of is not None:
        notices.append(
            f"dataset: planned from {encoded.examples + encoded.dropped:,} of {encoded.of:,} examples, spread evenly: "
            "what follows from all of them is estimated (examples that are dropped, steps, tokens, the longest row and "
            "the largest micro-batch), and a fault in another example shows when the run encodes them."
        )
    notices += [*assembled.told, *told(adaptation.chosen, assembled.layout), *adaptation.notices()]
    shown = batches.collate(batches.plan(0)[0], assembled.tokenizer.pad_token_id)
    notices += foretell(assembled.module, shown, section, assembled.device)
    if memory.unknown is not None:
        notices.append(f"memory: activations could not be estimated and are not counted: {memory.unknown}")
    elif memory.allowed is not None and memory.peak > memory.allowed:
        notices.append("train.memory: the estimate is above it by every memory plan")
    return Plan(
        model=assembled.name,
        architecture=assembled.layout.kind,
        methods=tuple(method.name for method in adaptation.chosen),
        matched=_matched(adaptation),
        trainable=adaptation.trainable,
        total=adaptation.total,
        dataset=data.name,
        examples=round(len(encoded.rows) * factor),
        dropped=round(encoded.dropped * factor),
        steps=steps,
        epochs=epochs,
        tokens=round(epochs * factor * int(batches.lengths.sum())),
        example=pieces(encoded.rows[0], assembled.tokenizer),
        memory=memory,
        rates=adaptation.rates(section.learning_rate),
        adapters=_children(adaptation),
        notices=notices,
    )


def pieces(row: Encoded, tokenizer: Any) -> list[tuple[str, bool]]:
    """Decode an encoded example into runs of text that are trained on or not."""
    runs = groupby(zip(row.ids, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    texts = ((plain([id for id, _ in run]), trained) for trained, run in runs)
    return [(tokenizer.decode(ids, skip_special_tokens=False), trained) for ids, trained in texts]


def _children(adaptation: Adaptation) -> list[str]:
    start = adaptation.went_on_from
    begun = [] if start is None else [f"goes on from the one in {start['folder']}"]
    taken = [adapter.site.children for adapter in adaptation.adapters()]
    lines = begun
    for name, child in adaptation.children.items():
        own = list(child.state.adapters())
        reached = {id(children[name]) for children in taken if name in children}
        methods = " + ".join(method.name for method in child.state.chosen)
        lines.append(f"{name}: {methods} at {len(reached)} of {len(own)} sites ({child.origin['folder']})")
    return lines


def _matched(adaptation: Adaptation) -> dict[str, tuple[int, str]]:
    matched: dict[str, tuple[int, str]] = {}
    for part in adaptation.parts:
        sites = [(adapter.site.role or adapter.site.path.split(".")[-1], key) for key, adapter in part.adapters.items()]
        own = [("own " + name.split(".")[-1], name) for name in part.own]
        for label, name in sites + own:
            count, first = matched.get(label, (0, name))
            matched[label] = (count + 1, first)
    return matched
