"""GSM8K: grade-school arithmetic with worked answers (Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from peftkit.data.example import Example, question
from peftkit.data.examples import Examples
from peftkit.data.hub import HubDataset
from peftkit.data.records import member, read_json_lines, text
from peftkit.data.subset import permutation
from peftkit.metrics import Scores
from peftkit.metrics.files import read_predictions
from peftkit.tasks.task import TASKS, Task

HELD_OUT = 500
"""Validation examples that are taken out of the training file, or a tenth of it where that is less."""


class GSM8K(Task):
    """Solve a word problem step by step; the answer closes with a line `#### <number>`.

    There is no official validation file: validation is a fixed part of the training file (500 problems, or a tenth
    where that is less), drawn once with seed 0, and the training split is the rest.
    """

    name = "gsm8k"
    hub = HubDataset("openai/gsm8k", "main", {"validation": "train"})
    metrics = ("gsm8k",)
    max_new_tokens = 400
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("train.jsonl",),
        "validation": ("train.jsonl",),
        "test": ("test.jsonl",),
    }

    def examples(self, paths: Sequence[Path], split: str) -> Examples:
        return Examples.at_once(lambda: part([example for path in paths for example in self.read_file(path)], split))

    def read_file(self, path: Path) -> list[Example]:
        """Read JSON lines with `question` and `answer`."""
        return [
            self._example(f"{path.name}:{line}", f"{path}, line {line}", record)
            for line, record in read_json_lines(path)
        ]

    def from_records(self, records: Iterable[Mapping[str, Any]], split: str) -> list[Example]:
        """Read the columns `question` and `answer`."""
        name = (self.hub.splits if self.hub else {}).get(split, split)
        examples = [
            self._example(f"{name}:{row}", f"{self.hub}, {name} row {row}", record)
            for row, record in enumerate(records)
        ]
        return part(examples, split)

    def key(self, example: Example) -> Hashable:
        return example.id

    def score_files(self, predictions: Path, references: Path) -> Scores:
        """Score worked answers against the official file, or a list of reference answers, one per problem."""
        if references.suffix == self.suffix:
            return super().score_files(predictions, references)
        return self.score_texts(read_predictions(predictions), [[text] for text in read_predictions(references)])

    def _example(self, identity: str, place: str, record: Mapping[str, Any]) -> Example:
        problem, answer = (
            text(member(record, place, key, str, "line"), place, key).strip() for key in ("question", "answer")
        )
        return question(identity, problem, answer)


def part(examples: Sequence[Example], split: str) -> list[Example]:
    """Return the training or the validation part of the training file's examples, or all of the test file's."""
    if split == "test":
        return list(examples)
    held_out = set(permutation(len(examples), 0)[: min(HELD_OUT, len(examples) // 10)])
    return [example for index, example in enumerate(examples) if (index in held_out) == (split == "validation")]


TASKS.add(GSM8K.name, GSM8K())
