"""Raw documents for language modelling: every token is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from peftkit.data.example import Example, Turn
from peftkit.data.examples import Item
from peftkit.data.records import member, text
from peftkit.data.tables import SUFFIXES, Columns, Record, read_records
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

    def items(self, path: Path) -> Iterator[Item]:
        """Yield the documents of a file that are not blank."""
        if path.suffix == ".txt":
            document = read_text(path)
            if not document.strip():
                raise PeftkitError(f"{path} is empty; documents are wanted.")
            yield partial(Example, path.name, (Turn("text", document),))
            return
        record = None
        for record in read_records(path):
            yield partial(_example, record, self.columns)
        if record is None:
            raise PeftkitError(f"{path} is empty; documents are wanted.")


def _example(record: Record, columns: Columns) -> Example:
    document = text(member(columns.of(record), record.place, "text", str), record.place, "text")
    return Example(record.identity, (Turn("text", document),))


TASKS.add(Documents.name, Documents())
