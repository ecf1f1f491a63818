"""Where a recipe's data set comes from: a folder, the hub, or the set that ships in the package."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from peftkit import files
from peftkit.data.example import Example, Turn
from peftkit.data.examples import Examples, Item
from peftkit.data.hub import HubUnreachableError
from peftkit.data.subset import chosen, permutation
from peftkit.data.tables import Columns
from peftkit.errors import PeftkitError, unknown
from peftkit.tasks.task import TASKS, Task

SPLITS = ("train", "validation", "test")
SOURCES = ("auto", "path", "hub", "bundled")
BUNDLED = Path(__file__).resolve().parents[1] / "data" / "bundled"
PREFIX = "bundled/"
FOLD = "fold"


class DataSource(Protocol):
    """What is read of a recipe's section `dataset`."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str | None: ...
    @property
    def source(self) -> str: ...
    @property
    def fraction(self) -> float: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def columns(self) -> Mapping[str, str] | None: ...
    @property
    def ignore(self) -> Sequence[str] | None: ...
    @property
    def validation(self) -> float | None: ...
    @property
    def system(self) -> str: ...


@dataclass(frozen=True)
class Loaded:
    """The examples of one split, and where they are from."""

    examples: Sequence[Example]
    """Read when they are asked for; a fault in a file shows then."""
    task: Task
    name: str
    """What was read: the task's name, with `bundled/` in front for the set that ships in the package."""
    origin: str
    """`path`, `hub` or `bundled`."""
    paths: Sequence[Path] | None
    """The files that hold the split; None for a set from the hub."""


def bundled() -> list[str]:
    """List the tasks that have a data set in the package."""
    return [name for name in TASKS.names() if (BUNDLED / name).is_dir()]


def names() -> list[str]:
    """List every name that `dataset` may have."""
    return [*TASKS.names(), *(PREFIX + name for name in bundled())]


def load(section: DataSource, split: str, *, grouped: bool = False, limit: int | None = None) -> Loaded:
    """Find a split (`train`, `validation` or `test`).

    With `grouped`, one example per distinct input that holds all of its references, in the order of the file, at most
    `limit` of them, and those are read at once; else one per reference. The section's `fraction` and `limit` pick a
    subset of the training split only, seeded and nested: 5 % lies within 10 %. The source `auto` is the folder `path`
    where one is given, else the hub where it answers, else the bundled set, with a notice. With `validation`, that
    part of the training split's distinct inputs is the validation split, and training goes without it. Raises
    PeftkitError for an unknown name and a file that is missing; a malformed one and an empty split raise it when
    examples are asked for.
    """
    if split not in SPLITS:
        raise PeftkitError(unknown("split", split, SPLITS))
    task, source = _resolve(section)
    if section.columns or section.ignore:
        task = task.with_columns(Columns(section.columns or {}, section.ignore or ()))
    held_out = section.validation is not None and split != "test"
    examples, origin, paths = _find(task, source, section, "train" if held_out else split)
    examples.empty = f"{_place(task, origin, section)}: the split '{split}' is empty."
    if held_out:
        examples = _held_out(task, examples, section, split)
    if section.system == FOLD:
        examples = examples.changed(lambda example: replace(example, turns=folded(example)))
    if split == "train" and (section.fraction < 1 or section.limit is not None):
        examples = examples.picked(chosen(len(examples), section.fraction, section.limit, section.seed))
    found = task.group(examples, limit) if grouped else examples
    return Loaded(found, task, (PREFIX if origin == "bundled" else "") + task.name, origin, paths)


def _held_out(task: Task, examples: Examples, section: DataSource, split: str) -> Examples:
    """Return those of the training examples that make a split, when a part of their inputs is held out."""

    def items() -> Iterator[Item]:
        # Marks in the place of keys, which for a large set are its whole text.
        marks = [hashlib.blake2b(repr(task.key(example)).encode(), digest_size=16).digest() for example in examples]
        inputs = list(dict.fromkeys(marks))
        count = max(1, round((section.validation or 0.0) * len(inputs)))
        if count >= len(inputs):
            raise PeftkitError(
                f"dataset.validation is {section.validation:g}, and there are {len(inputs)} different inputs: nothing "
                "is left to train on."
            )
        held = {inputs[index] for index in permutation(len(inputs), section.seed)[:count]}
        return (
            item
            for item, mark in zip(examples.items(), marks, strict=True)
            if (mark in held) == (split == "validation")
        )

    return Examples(items, examples.empty)


def folded(example: Example) -> tuple[Turn, ...]:
    """Return an example's turns with the text of a system turn in front of the first user's."""
    said = "\n\n".join(turn.text for turn in example.turns if turn.role == "system")
    turns = [turn for turn in example.turns if turn.role != "system"]
    first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if not said.strip():
        return tuple(turns)
    if first is None:
        raise PeftkitError(f"{example.id}: dataset.system is '{FOLD}', and no user's turn is there to take it.")
    turns[first] = replace(turns[first], text=f"{said}\n\n{turns[first].text}")
    return tuple(turns)


def _resolve(section: DataSource) -> tuple[Task, str]:
    """Return the task and the source that name, path and source of the section agree on."""
    name = section.name.removeprefix(PREFIX)
    shipped = name != section.name
    if name not in TASKS or (shipped and name not in bundled()):
        raise PeftkitError(f"dataset.name: {unknown('data set', section.name, names())}")
    source = section.source
    if source not in SOURCES:
        raise PeftkitError(f"dataset.source: {unknown('source', source, SOURCES)}")
    if shipped:
        if section.path is not None or source not in ("auto", "bundled"):
            raise PeftkitError(
                f"dataset: {section.name} ships in the package, and path or source name another place; "
                f"for that place write `name: {name}`."
            )
        return TASKS[name], "bundled"
    if source == "auto" and section.path is not None:
        source = "path"
    if source == "path" and section.path is None:
        raise PeftkitError(f"dataset.path is missing: the source 'path' reads {name} from the folder that it names.")
    if source in ("hub", "bundled") and section.path is not None:
        raise PeftkitError(f"dataset: path is given and source is '{source}'; leave one of them out.")
    return TASKS[name], source


def _find(task: Task, source: str, section: DataSource, split: str) -> tuple[Examples, str, list[Path] | None]:
    """Find the split in the source, and the files that hold it; `auto` tries the hub, then the package."""
    if source == "path":
        paths = task.paths(files.expanded(section.path or ""), split)
        return task.examples(paths, split), "path", paths
    if source == "hub" and task.hub is None:
        raise PeftkitError(f"dataset: {task.name} is not on the hub; name your own files in `dataset.path`.")
    if source in ("auto", "hub") and task.hub is not None:
        try:
            found = task.from_hub(split)
            return Examples.at_once(lambda: found), "hub", None
        except HubUnreachableError as error:
            if source == "hub" or task.name not in bundled():
                raise
            notice = "%s Reading the small synthetic data set %s instead."
            logging.getLogger("peftkit").warning(notice, error, PREFIX + task.name)
    if task.name not in bundled():
        raise PeftkitError(f"dataset: {task.name} reads your own files; name them in `dataset.path`.")
    paths = task.paths(BUNDLED / task.name, split)
    return task.examples(paths, split), "bundled", paths


def _place(task: Task, origin: str, section: DataSource) -> str:
    return str(section.path) if origin == "path" else f"{task.name} ({origin})"
