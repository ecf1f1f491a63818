"""Raw documents for language modelling: every token is trained on."""

from __future__ import annotations

from pathlib import Path

from peftkit.data.example import Example, Turn
from peftkit.data.records import member, read_json_lines, text
from peftkit.data.splits import split_files
from peftkit.errors import PeftkitError
from peftkit.files import read_text
from peftkit.tasks.task import TASKS, Task

SUFFIXES = (".txt", ".jsonl")


class Documents(Task):
    """Your own documents: `.txt` files of one document each, or `.jsonl` lines with `text`.

    `dataset.path` is one file, or a folder with `train.txt` or `train.jsonl` or a folder `train/` of such files, and
    the same for validation and test.
    """

    name = "text"
    max_new_tokens = 128

    def read(self, folder: Path, split: str) -> list[Example]:
        """Read the documents of a split."""
        return [example for path in split_files(folder, split, SUFFIXES) for example in self.read_file(path)]

    def read_file(self, path: Path) -> list[Example]:
        """Read one file of documents."""
        if path.suffix == ".jsonl":
            documents = [
                (f"{path.name}:{line}", text(member(record, place, "text", str), place, "text"))
                for line, record in read_json_lines(path)
                for place in [f"{path}, line {line}"]
            ]
        else:
            documents = [(path.name, read_text(path))]
        examples = [
            Example(identity, (Turn("text", document),)) for identity, document in documents if document.strip()
        ]
        if not examples:
            raise PeftkitError(f"{path} is empty; documents are wanted.")
        return examples


TASKS.add(Documents.name, Documents())
