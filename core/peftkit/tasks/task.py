"""What a task is: files to examples, examples to groups of references, predictions to scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from peftkit.data.example import Example
from peftkit.data.examples import Examples
from peftkit.data.hub import HubDataset
from peftkit.data.records import find_file
from peftkit.data.tables import Columns
from peftkit.errors import PeftkitError
from peftkit.metrics import Scores, score
from peftkit.metrics.files import read_predictions, read_references
from peftkit.registry import Registry


class Task(ABC):
    """A data set with its prompt and its metrics; the first line of a subclass's docstring is its description."""

    name: ClassVar[str]
    hub: ClassVar[HubDataset | None] = None
    metrics: ClassVar[tuple[str, ...]] = ()
    """Names in `peftkit.metrics.METRICS`."""
    headline: ClassVar[str | None] = None
    """The score that stands for the others in a comparison; the first one where it is not named."""
    max_new_tokens: ClassVar[int] = 128
    stop: ClassVar[tuple[str, ...]] = ()
    """Texts that end a generated output besides the end-of-sequence token."""
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """For each split, patterns of its file in the data folder, the official name first."""

    suffix: ClassVar[str] = ".jsonl"
    """The ending of an official file, which tells it from a plain file of references."""

    def read(self, folder: Path, split: str) -> list[Example]:
        """Read a split of the official files, one example per reference; where one is missing, one of a like name.

        Raises PeftkitError that names file and line for a file that is missing or malformed.
        """
        return list(self.examples(self.paths(folder, split), split))

    def paths(self, folder: Path, split: str) -> list[Path]:
        """Return the files that hold a split; PeftkitError where one is missing."""
        return [find_file(folder, self.files[split])]

    def examples(self, paths: Sequence[Path], split: str) -> Examples:
        """Return the examples of a split, which are in these files; by default all are read when one is asked for."""
        return Examples.at_once(lambda: [example for path in paths for example in self.read_file(path)])

    @abstractmethod
    def read_file(self, path: Path) -> list[Example]:
        """Read one official file, whatever split it is."""

    def with_columns(self, columns: Columns) -> Self:
        """Return the task that reads keys as `columns` says; PeftkitError where the files are official ones."""
        raise PeftkitError(
            f"dataset: {self.name} reads official files, whose keys are known; `columns` and `ignore` are for your own "
            "files, with the name jsonl or text."
        )

    def from_records(self, records: Iterable[Mapping[str, Any]], split: str) -> list[Example]:
        """Turn the hub's records into the same examples as the official files give."""
        raise PeftkitError(f"dataset: {self.name} is not on the hub; name your own files in `dataset.path`.")

    def from_hub(self, split: str) -> list[Example]:
        """Read a split from the Hugging Face hub; `HubUnreachableError` where it does not answer."""
        return self.from_records(self.hub.records(split) if self.hub else (), split)

    def key(self, example: Example) -> Hashable:
        """Return what examples of the same input share."""
        return example.prompt

    def group(self, examples: Iterable[Example], limit: int | None = None) -> list[Example]:
        """Return one example per distinct input, in order of first appearance, with all references of that input.

        With a `limit`, of the first so many inputs; no others are held.
        """
        groups: dict[Hashable, list[Example]] = {}
        for example in examples:
            key = self.key(example)
            if key in groups:
                groups[key].append(example)
            elif limit is None or len(groups) < limit:
                groups[key] = [example]
        return [
            replace(members[0], references=tuple(reference for member in members for reference in member.references))
            for members in groups.values()
        ]

    def parts(self, example: Example) -> Iterable[str]:
        """Name the parts of the data set, besides the whole, that an example is scored in."""
        return ()

    def conversation(self, example: Example) -> Hashable | None:
        """Return what the turns of one conversation share, or None where an example stands alone."""
        return None

    def said(self, examples: Sequence[Example], answers: Sequence[str]) -> Example:
        """Return the last of a conversation's `examples` with these answers to those before it in its prompt."""
        raise TypeError(f"{self.name} has no conversations")

    def score(self, examples: Sequence[Example], predictions: Sequence[str]) -> Scores:
        """Score one prediction per grouped example with each of the task's metrics.

        The figures of a part are scored on it alone and called `part/metric`; a part that holds all examples is left
        out.
        """
        references = [example.references for example in examples]
        scores = self.score_texts(predictions, references)
        parts: dict[str, list[int]] = {}
        for index, example in enumerate(examples):
            for part in self.parts(example):
                parts.setdefault(part, []).append(index)
        for part, chosen in sorted(parts.items()):
            if len(chosen) < len(examples):
                figures = self.score_texts([predictions[i] for i in chosen], [references[i] for i in chosen])
                scores |= {f"{part}/{key}": figure for key, figure in figures.items()}
        return scores

    def score_texts(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
        """Score predictions against lists of references, pair by pair."""
        if len(predictions) != len(references):
            raise PeftkitError(
                f"{len(predictions)} predictions for {len(references)} inputs: "
                "one prediction per distinct input is wanted, in the order of the reference file."
            )
        if not references:
            raise PeftkitError("there is nothing to score: no input and no prediction.")
        return score(self.metrics, predictions, references)

    def score_files(self, predictions: Path, references: Path) -> Scores:
        """Score a file of predictions against an official file of the task, or a plain file of references.

        `peftkit.metrics.files` says what a plain file may be: in short, JSON, JSON lines, or one text a line.
        """
        texts = read_predictions(predictions)
        if references.suffix != self.suffix:
            return self.score_texts(texts, read_references(references))
        return self.score(self.group(self.read_file(references)), texts)


TASKS: Registry[Task] = Registry("task", "peftkit.tasks")
