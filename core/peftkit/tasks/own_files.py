"""Tasks that read a user's own files, whose keys a recipe may name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import ClassVar

from typing_extensions import Self

from peftkit.data.example import Example
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

    def read(self, folder: Path, split: str) -> list[Example]:
        """Read the file or files of a split."""
        return [example for path in split_files(folder, split, self.suffixes) for example in self.read_file(path)]
