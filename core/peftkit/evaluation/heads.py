"""Scoring what an objective's own module predicts of each example, where no text is generated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftkit.adaptation import OBJECTIVE
from peftkit.assembly import assemble
from peftkit.data.batches import Batch
from peftkit.engine.engine import choose
from peftkit.engine.passes import Plain
from peftkit.errors import PeftkitError
from peftkit.estimation.asked import arrangement_of
from peftkit.generation.decoding import OnProgress
from peftkit.recipe import Recipe
from peftkit.tasks import source
from peftkit.versions import versions


def predict(
    recipe: Recipe, run: Path, split: str, limit: int | None, on_progress: OnProgress | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the report of a run on a split, and what is predicted of each example.

    Raises PeftkitError for an adapter without the module of its objective, and labels that training did not know.
    """
    data = source.load(recipe.dataset, split)
    examples = data.examples[:limit]
    subject = assemble(recipe, run / "adapter", headed=True)
    objective, adaptation = subject.objective, subject.adaptation
    if objective is None:
        raise PeftkitError(f"{run / 'adapter'} has no module of the recipe's objective: train the run again.")
    rows = objective.encode(examples, subject.template, subject.tokenizer, recipe.train.max_length).rows
    pad_id, size = subject.tokenizer.pad_token_id, recipe.eval.batch_size
    wanted = arrangement_of(recipe.train)
    engine, _ = choose(subject.module, rows, pad_id, subject.device, wanted, adaptation.methods)
    plain = Plain(engine, objective, adaptation, subject.device, subject.precision)

    def batches() -> Iterator[Batch]:
        for at in range(0, len(rows), size):
            yield objective.collate(rows[at : at + size], pad_id)
            if on_progress is not None:
                on_progress(min(at + size, len(rows)), len(rows))

    started = time.monotonic()
    result = plain.evaluate(batches())
    report = {
        "scores": objective.scores(result.metrics),
        "unavailable": {},
        "loss": result.loss / max(1, result.weight),
        "dataset": data.name,
        "origin": data.origin,
        "split": split,
        "limit": limit,
        "examples": len(examples),
        "model": subject.name,
        "fingerprint": subject.fingerprint,
        "adapter": subject.methods,
        OBJECTIVE: {"name": objective.name, "options": objective.options()},
        "template": subject.template.name,
        "batch_size": size,
        "device": subject.device.type,
        "precision": subject.precision,
        "wall_s": round(time.monotonic() - started, 3),
        "versions": versions(),
    }
    return report, objective.predictions(examples, result.metrics)
