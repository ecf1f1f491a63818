"""Tasks that read a user's own files, whose keys a recipe may name."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import ClassVar

from typing_extensions import Self

from peftkit.data.example import Example
from peftkit.data.examples import Examples, Item
from peftkit.data.splits import split_files
from peftkit.data.tables import SUFFIXES, Columns
from peftkit.tasks.task import Task


class OwnFiles(Task):
    """One file, or a folder with a file or a folder of files for each split."""

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    """The endings of files that are read, the preferred one first."""
    columns: Columns = Columns()

    def with_columns(self, columns: Columns) -> Self:
        """Return the task that reads keys as `columns` says."""
        task = copy.copy(self)
        task.columns = columns
        return task

    def paths(self, folder: Path, split: str) -> list[Path]:
        return split_files(folder, split, self.suffixes)

    def examples(self, paths: Sequence[Path], split: str) -> Examples:
        return Examples(lambda: chain.from_iterable(map(self.items, paths)))

    def read_file(self, path: Path) -> list[Example]:
        """Read one file, in whatever form it is."""
        return [item() for item in self.items(path)]

    @abstractmethod
    def items(self, path: Path) -> Iterator[Item]:
        """Yield the examples of a file unmade; a file without any is a PeftkitError."""
