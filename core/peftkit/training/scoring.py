"""Scores of generated answers while a run goes on: a fixed part of the validation split, answered as in `peft eval`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from peftkit.data.example import Example
from peftkit.data.template import Template
from peftkit.device import autocast
from peftkit.engine.passes import Plain
from peftkit.errors import PeftkitError, nearest
from peftkit.estimation.asked import objective_of
from peftkit.evaluation import check_examples, evaluate_loaded
from peftkit.metrics import METRICS
from peftkit.recipe import Recipe
from peftkit.tasks import TASKS, Task
from peftkit.tasks.source import PREFIX
from peftkit.tasks.source import load as load_data
from peftkit.training.best import VALIDATION, Best


@dataclass(frozen=True)
class Slice:
    """The inputs that are answered each time, and the task that scores the answers."""

    task: Task
    examples: list[Example]

    @property
    def digest(self) -> str:
        """SHA-256 of the inputs and their references."""
        told = [(example.id, example.turns, example.references) for example in self.examples]
        return hashlib.sha256(repr(told).encode()).hexdigest()


def check(recipe: Recipe) -> None:
    """Raise PeftkitError, before anything is read, where no score of the data set's task is what the recipe names."""
    section, task = recipe.train, TASKS[recipe.dataset.name.removeprefix(PREFIX)]
    objective = objective_of(section, recipe.objective)
    if section.score_every is not None and not objective.generates():
        raise PeftkitError(
            f"train.score_every: the objective '{objective.name}' generates no answers to score; write null, and give "
            "train.evaluate_every for its scores on the validation split."
        )
    if section.score_every is not None and not task.metrics:
        raise PeftkitError(
            f"train.score_every: the data set {recipe.dataset.name} has no metrics; write null, and give "
            "train.evaluate_every for losses on the validation split."
        )
    if section.keep_best is None:
        return
    metric = Best(section.keep_best).metric
    measured, answered = [VALIDATION, *objective.score_names()], score_names(task) if objective.generates() else []
    known = [*measured, *answered]
    if metric not in known:
        guess = nearest(metric, known)
        hint = f" Did you mean '{guess}'?" if guess else ""
        raise PeftkitError(f"train.keep_best: found '{metric}'; allowed: {', '.join(known)}.{hint}")
    key = "evaluate_every" if metric in measured else "score_every"
    if getattr(section, key) is None:
        raise PeftkitError(f"train.keep_best: found '{metric}' without train.{key}, which says when it is measured")


def score_names(task: Task) -> list[str]:
    """List the scores of a task."""
    return [key for name in task.metrics for key in METRICS[name].keys]


def load_slice(recipe: Recipe, dataset: str) -> Slice | None:
    """Choose `train.score_inputs` inputs spread evenly over the validation split; None where no scores are wanted."""
    section = recipe.train
    if section.score_every is None:
        return None
    data = load_data(recipe.dataset.model_copy(update={"name": dataset}), "validation", grouped=True)
    every = max(1, len(data.examples) // section.score_inputs)
    chosen = list(data.examples[::every][: section.score_inputs])
    check_examples(data.task, chosen, data.name)
    return Slice(data.task, chosen)


def measure(chosen: Slice, plain: Plain, tokenizer: Any, template: Template, recipe: Recipe) -> dict[str, float]:
    """Answer the slice with the model as it stands; return the scores. Dropout is off inside and as before after."""
    with autocast(plain.device, plain.casts):
        measured = evaluate_loaded(
            plain.engine.model,
            tokenizer,
            chosen.task,
            chosen.examples,
            template,
            generation=recipe.generation,
            batch_size=recipe.eval.batch_size,
        )
    return dict(measured.scores)
