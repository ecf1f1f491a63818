"""Answering examples with a model as it stands, and scoring the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftkit.data.example import Example
from peftkit.data.template import Template
from peftkit.errors import PeftkitError
from peftkit.generation import Settings
from peftkit.generation.asking import Asked, History
from peftkit.generation.decoding import OnProgress
from peftkit.generation.journal import Journal
from peftkit.generation.stopping import own_ends
from peftkit.metrics import Scores
from peftkit.metrics.ptb import treebank_tokens
from peftkit.recipe import GenerationSection
from peftkit.tasks import Task


@dataclass(frozen=True)
class Evaluation:
    """Answers and scores of a set of examples."""

    scores: Scores
    predictions: list[dict[str, Any]]
    """One record an example: id, prompt, prediction, references, finished."""
    settings: Settings
    unfinished: int
    """Answers that the limit of new tokens cut off."""
    shortened: int
    """Prompts of which only the end fits into the model's context."""
    tokens: int
    """Generated tokens."""
    wall_s: float
    """Seconds for generating."""
    treebank_tokens: str | None = None
    """Whose treebank tokens were counted; None where none were."""


def evaluate_loaded(
    model: Any,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    template: Template,
    *,
    generation: GenerationSection | None = None,
    batch_size: int = 32,
    history: History = "gold",
    official: bool = False,
    journal: Journal | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Answer grouped `examples` with a model as it stands and score the answers by the task's metrics.

    `history` says which earlier answers a conversation's prompts hold, `official` that treebank tokens
    are those of the official program. What `journal` holds of an interrupted
    evaluation is not generated again.
    """
    check_examples(task, examples, task.name)
    settings = settings_for(model, tokenizer, task, template, generation or GenerationSection())
    asked = Asked(model, tokenizer, task, examples, template, settings, history)
    answers = asked.answer(batch_size, journal, on_progress)
    texts = [answer.text.strip() for answer in answers]
    with treebank_tokens(official=official) as source:
        scores = task.score(examples, texts)
    return Evaluation(
        scores=scores,
        predictions=records(asked, texts),
        settings=settings,
        unfinished=sum(not answer.finished for answer in answers),
        shortened=len(asked.shortened),
        tokens=sum(len(answer.ids) for answer in answers),
        wall_s=asked.wall_s,
        treebank_tokens=source.name,
    )


def records(asked: Asked, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return what is written of each prediction, in the order of the examples."""
    by_index: dict[int, dict[str, Any]] = {}
    for conversation in asked.conversations:
        for turn, index in enumerate(conversation):
            example, answer = asked.posed(conversation, turn), asked.answers[index]
            by_index[index] = {
                "id": example.id,
                "prompt": example.prompt[-1].text if example.prompt else "",
                "prediction": texts[index],
                "references": list(example.references),
                "finished": answer is not None and answer.finished,
            }
    return [by_index[index] for index in range(len(texts))]


def settings_for(model: Any, tokenizer: Any, task: Task, template: Template, section: GenerationSection) -> Settings:
    """Combine what the recipe, the task, the template and the model say about generating."""
    given = {
        "max_new_tokens": section.max_new_tokens or task.max_new_tokens,
        "stop": tuple(dict.fromkeys((*task.stop, *section.stop))),
        "ends": tuple(dict.fromkeys((*template.stop_ids(tokenizer), *own_ends(model, tokenizer)))),
    }
    return Settings(**{**section.model_dump(), **given})


def check_examples(task: Task, examples: Sequence[Example], dataset: str) -> None:
    """Raise PeftkitError, before any text is generated, where there would be nothing to score it by."""
    if not task.metrics:
        raise PeftkitError(f"the data set {dataset} has no metrics: its texts have no right answers to compare with.")
    bare = next((example.id for example in examples if not any(example.references)), None)
    if bare is not None:
        raise PeftkitError(f"{dataset}: the example {bare} has no reference, so its answer cannot be scored.")
