"""A recipe's examples as encoded rows, kept on the disk where there are many."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from peftkit import files
from peftkit.data import encoding
from peftkit.data.batches import Batches
from peftkit.data.cache import Cache, mark
from peftkit.data.encode import EncodedExamples
from peftkit.data.example import Example
from peftkit.data.examples import Examples
from peftkit.data.stream import Streamed
from peftkit.data.template import Template
from peftkit.errors import PeftkitError
from peftkit.objectives import Objective
from peftkit.recipe import Recipe, TrainSection
from peftkit.tasks.source import Loaded
from peftkit.versions import versions

LIBRARIES = ("peftkit", "tokenizers", "transformers")
"""Those that make the ids: templates and rules for targets are our own."""
PATIENCE = 2.0
"""Seconds of encoding after which it is told how far it is, and again every second."""
Working = Callable[[str], None]
"""Receives what is being done before the first step, a few words."""


def options(section: TrainSection, objective: Objective) -> dict[str, Any]:
    """Return how a recipe cuts rows into micro-batches, as `Batches` takes it."""
    return {
        "batch_tokens": section.batch_tokens,
        "batch_examples": section.batch_examples,
        "seed": section.seed,
        "group_prompts": section.group_prompts,
        "collate": objective.collate,
    }


def nothing_left(dataset: str, count: int, max_length: int) -> str:
    """Say why there is nothing to train on."""
    return (
        f"none of the {count} training examples of {dataset} keeps a token to train on within train.max_length "
        f"{max_length}: raise train.max_length, or check that the examples have answers."
    )


@dataclass(frozen=True)
class Encoder:
    """Encodes examples for a recipe's training, or maps what was encoded of them before."""

    recipe: Recipe
    template: Template
    tokenizer: Any
    working: Working = lambda text: None

    def train(
        self, data: Loaded, objective: Objective, most: int | None = None
    ) -> tuple[EncodedExamples, Objective, Batches]:
        """Return the rows of the training split, the settled objective, and the rows in micro-batches.

        Of streamed data the rows are those of the first block. Where nothing is kept and there are more than `most`
        examples, so many are read, spread evenly. Raises PeftkitError for what is wrong in the files, and
        where nothing is left to train on.
        """
        section, stream = self.recipe.train, None
        if self.recipe.dataset.streaming:
            stream = self._streamed(data, objective)
            encoded = stream.first
        else:
            encoded, objective = self.encode(data, "train", objective, most=most)
        if not encoded.rows:
            raise PeftkitError(nothing_left(data.name, encoded.dropped, section.max_length))
        return encoded, objective, stream or Batches(encoded.rows, **options(section, objective))

    def _streamed(self, data: Loaded, objective: Objective) -> Streamed:
        dataset, section = self.recipe.dataset, self.recipe.train
        assert isinstance(data.examples, Examples)

        def encode(some: Sequence[Example]) -> EncodedExamples:
            if objective.settle(some) != objective:
                raise PeftkitError(
                    f"dataset.streaming: the objective '{objective.name}' takes options from all training examples, "
                    "and they are never all there: give them in the recipe."
                )
            return objective.encode(some, self.template, self.tokenizer, section.max_length)

        return Streamed(data.examples, encode, dataset.buffer, **options(section, objective))

    def encode(
        self, data: Loaded, split: str, objective: Objective, count: int | None = None, most: int | None = None
    ) -> tuple[EncodedExamples, Objective]:
        """Return the rows of a split, at most `count` examples spread evenly over it, and the settled objective.

        `most` is such a count for a split of which nothing is kept; `of` tells then how many examples there are.
        Files are read where nothing is kept; raises PeftkitError for what is wrong in them.
        """
        cache = self._place(data, split, objective, count)
        kept = None if cache is None else cache.read()
        if kept is not None:
            return kept[0], type(objective).from_options(kept[1])
        examples: Sequence[Example] = data.examples
        if most is not None and len(examples) > most:
            part, objective = self.encode(data, split, objective, most)
            return replace(part, of=len(examples)), objective
        few = False
        if count is not None:
            few = len(examples) <= encoding.CHUNK
            every = max(1, len(examples) // count)
            examples = examples[: every * count : every]
        objective = objective.settle(examples)
        length = self.recipe.train.max_length

        def encode(some: Sequence[Example]) -> EncodedExamples:
            return objective.encode(some, self.template, self.tokenizer, length)

        def make() -> Any:
            return encoding.parts(examples, encode, self._told(split))

        if cache is None or few:
            return encoding.joined(make()), objective
        return cache.keep(make, objective.options(), 1 if count else encoding.CHUNK), objective

    def _place(self, data: Loaded, split: str, objective: Objective, count: int | None) -> Cache | None:
        """Return where the rows are kept; None where it cannot be told from what they are made."""
        words = mark(self.tokenizer)
        if data.paths is None or words is None:
            return None
        description = {
            "files": [[path.name, files.checksum(path)] for path in data.paths],
            "dataset": self.recipe.dataset.model_dump(mode="json", exclude={"path", "source", "name"}),
            "task": data.task.name,
            "split": [split, count],
            "tokenizer": words,
            "template": [self.template.name, *self.template.soft],
            **({} if self.template.keys is None else {"keys": asdict(self.template.keys)}),
            "objective": [objective.name, objective.options()],
            "max_length": self.recipe.train.max_length,
        }
        now = versions()
        return Cache.of(description, {name: now[name] for name in LIBRARIES})

    def _told(self, split: str) -> Callable[[int], None]:
        told = time.monotonic() + PATIENCE - 1

        def tell(count: int) -> None:
            nonlocal told
            if time.monotonic() - told >= 1:
                told = time.monotonic()
                self.working(f"encoding the {split} split: {count:,} examples")

        return tell
