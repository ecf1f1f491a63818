"""Raw documents for language modelling: every token is trained on."""

from __future__ import annotations

from pathlib import Path

from peftkit.data.example import Example, Turn
from peftkit.data.records import member, text
from peftkit.data.tables import SUFFIXES, read_records
from peftkit.errors import PeftkitError
from peftkit.files import read_text
from peftkit.tasks.own_files import OwnFiles
from peftkit.tasks.task import TASKS


class Documents(OwnFiles):
    """Your own documents: `.txt` files of one document each, or JSON lines, a JSON array, CSV or Parquet with `text`.

    `dataset.path` is one file, or a folder with `train.txt` or `train.jsonl` or a folder `train/` of such files, and
    the same for validation and test. Other keys than `text` are left alone.
    """

    name = "text"
    suffixes = (".txt", *SUFFIXES)
    max_new_tokens = 128

    def read_file(self, path: Path) -> list[Example]:
        """Read one file of documents."""
        if path.suffix == ".txt":
            documents = [(path.name, read_text(path))]
        else:
            documents = [
                (
                    record.identity,
                    text(member(self.columns.of(record), record.place, "text", str), record.place, "text"),
                )
                for record in read_records(path)
            ]
        examples = [
            Example(identity, (Turn("text", document),)) for identity, document in documents if document.strip()
        ]
        if not examples:
            raise PeftkitError(f"{path} is empty; documents are wanted.")
        return examples


TASKS.add(Documents.name, Documents())
