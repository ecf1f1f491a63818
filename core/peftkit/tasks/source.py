"""Where a recipe's data set comes from: a folder, the hub, or the set that ships in the package."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from peftkit.data.example import Example
from peftkit.data.hub import HubUnreachableError
from peftkit.data.subset import subset
from peftkit.errors import PeftkitError, unknown
from peftkit.tasks.task import TASKS, Task

SPLITS = ("train", "validation", "test")
SOURCES = ("auto", "path", "hub", "bundled")
BUNDLED = Path(__file__).resolve().parents[1] / "data" / "bundled"
PREFIX = "bundled/"


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


@dataclass(frozen=True)
class Loaded:
    """The examples of one split, and where they are from."""

    examples: list[Example]
    task: Task
    name: str
    """What was read: the task's name, with `bundled/` in front for the set that ships in the package."""
    origin: str
    """`path`, `hub` or `bundled`."""


def bundled() -> list[str]:
    """List the tasks that have a data set in the package."""
    return [name for name in TASKS.names() if (BUNDLED / name).is_dir()]


def names() -> list[str]:
    """List every name that `dataset` may have."""
    return [*TASKS.names(), *(PREFIX + name for name in bundled())]


def load(section: DataSource, split: str, *, grouped: bool = False) -> Loaded:
    """Read a split (`train`, `validation` or `test`).

    With `grouped`, one example per distinct input that holds all of its references, in the order of the file; else
    one per reference. `fraction` and `limit` pick a subset of the training split only, seeded and nested: 5 % lies
    within 10 %. The source `auto` is the folder `path` where one is given, else the hub where it answers, else the
    bundled set, with a notice. Raises PeftkitError for an unknown name, a file that is missing or malformed, and an
    empty split.
    """
    if split not in SPLITS:
        raise PeftkitError(unknown("split", split, SPLITS))
    task, source = _resolve(section)
    examples, origin = _read(task, source, section, split)
    if not examples:
        raise PeftkitError(f"{_place(task, origin, section)}: the split '{split}' is empty.")
    if split == "train":
        examples = subset(examples, section.fraction, section.limit, section.seed)
    if grouped:
        examples = task.group(examples)
    return Loaded(examples, task, (PREFIX if origin == "bundled" else "") + task.name, origin)


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


def _read(task: Task, source: str, section: DataSource, split: str) -> tuple[list[Example], str]:
    """Read the split from the source; `auto` tries the hub, then the package."""
    if source == "path":
        return task.read(Path(section.path or "").expanduser(), split), "path"
    if source == "hub":
        if task.hub is None:
            raise PeftkitError(f"dataset: {task.name} is not on the hub; name your own files in `dataset.path`.")
        return task.from_hub(split), "hub"
    if source == "auto" and task.hub is not None:
        try:
            return task.from_hub(split), "hub"
        except HubUnreachableError as error:
            if task.name not in bundled():
                raise
            notice = "%s Reading the small synthetic data set %s instead."
            logging.getLogger("peftkit").warning(notice, error, PREFIX + task.name)
    if task.name not in bundled():
        raise PeftkitError(f"dataset: {task.name} reads your own files; name them in `dataset.path`.")
    return task.read(BUNDLED / task.name, split), "bundled"


def _place(task: Task, origin: str, section: DataSource) -> str:
    return str(section.path) if origin == "path" else f"{task.name} ({origin})"
