"""Encoded data sets on disk, so that a second start maps what the first one encoded."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit import files, schemas
from peftkit.data.encode import EncodedExamples
from peftkit.data.encoding import EncodedPart, joined
from peftkit.data.rows import EncodedRows, RowBlock
from peftkit.errors import PeftkitError
from peftkit.schemas import Count, Stored

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
"""Of what is written, and of the ids that templates and `encode` make of an example: raised when either changes."""
ROWS, FACTS = "rows.arrow", "facts.json"


class CacheFacts(Stored):
    """What is told of encoded rows beside them."""

    sha256: str
    """Of the rows' file."""
    digest: str
    """Of the rows themselves, as `EncodedRows.digest` returns it."""
    rows: Count
    dropped: Count
    prompts_cut: Count
    targets_cut: Count
    special: list[str]
    versions: dict[str, str]
    """Of the libraries that made the ids."""
    options: dict[str, Any]
    """What the objective took from the examples."""


@dataclass(frozen=True)
class Cache:
    """The place of a data set's encoded rows, in a folder of its own."""

    folder: Path
    versions: Mapping[str, str]
    """Of the libraries that make the ids; rows of others are made again."""

    @classmethod
    def of(cls, description: Mapping[str, Any], versions: Mapping[str, str]) -> Cache:
        """Return the place that follows from everything that changes a row, as JSON can hold it.

        Its parent is `PEFTKIT_CACHE`, or else `peftkit` in the user's cache folder.
        """
        key = hashlib.sha256(json.dumps([VERSION, description], sort_keys=True).encode()).hexdigest()
        return cls(files.cache_folder() / "encoded" / key[:32], versions)

    def read(self) -> tuple[EncodedExamples, dict[str, Any]] | None:
        """Return the rows, mapped from the disk, and the objective's options; None where nothing is kept.

        What is damaged, or made by other versions, is removed with a notice.
        """
        if not (self.folder / FACTS).is_file():
            return None
        try:
            facts = self._facts()
            rows, sources = _mapped(self.folder / ROWS, facts)
        except PeftkitError as error:
            logging.getLogger("peftkit").warning("%s The data set is encoded again.", error)
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        encoded = EncodedExamples(rows, sources, facts.dropped, facts.prompts_cut, facts.targets_cut, facts.special)
        return encoded, facts.options

    def _facts(self) -> CacheFacts:
        facts = CacheFacts.model_validate(schemas.read(self.folder / FACTS, CacheFacts))
        changed = [name for name, version in self.versions.items() if facts.versions.get(name) != version]
        if changed:
            told = ", ".join(f"{name} {facts.versions.get(name)}, not {self.versions[name]}" for name in changed)
            raise PeftkitError(f"{self.folder} was encoded by {told}.")
        if files.checksum(self.folder / ROWS) != facts.sha256:
            raise PeftkitError(f"{self.folder / ROWS} is damaged: its checksum differs.")
        return facts

    def keep(
        self, make: Callable[[], Iterable[EncodedPart]], options: Mapping[str, Any], least: int
    ) -> EncodedExamples:
        """Write what `make` returns part by part, and return it mapped from the disk.

        It is not kept where the first part has fewer than `least` examples. Where the disk refuses, that is a warning,
        and the rows are in memory.
        """
        own: list[BaseException] = []

        def noted() -> Iterator[EncodedPart]:
            try:
                yield from make()
            except BaseException as error:
                own.append(error)
                raise

        made = noted()
        first = next(made, None)
        if first is None or first.examples < least:
            return joined([] if first is None else [first])
        try:
            with files.new_folder(self.folder, replace=True) as temporary:
                self._write(temporary, first, made, options)
        except PeftkitError as error:
            if own:
                raise
            logging.getLogger("peftkit").warning("the encoded data are not kept for the next start: %s", error)
            return joined(make())
        kept = self.read()
        return joined(make()) if kept is None else kept[0]

    def _write(self, folder: Path, first: EncodedPart, rest: Iterator[EncodedPart], options: Mapping[str, Any]) -> None:
        import pyarrow as pa

        state, part = hashlib.sha256(), first
        special: list[str] = []
        counts = {"rows": 0, "dropped": 0, "prompts_cut": 0, "targets_cut": 0}
        with (folder / ROWS).open("wb") as file, pa.ipc.new_stream(file, _batch(first).schema) as stream:
            while part is not None:
                stream.write_batch(_batch(part))
                EncodedRows([part.block]).feed(state)
                counts["rows"] += len(part.sources)
                special += part.special
                for name in ("dropped", "prompts_cut", "targets_cut"):
                    counts[name] += getattr(part, name)
                part = next(rest, None)
        facts = CacheFacts(
            sha256=files.checksum(folder / ROWS),
            digest=state.hexdigest(),
            special=special,
            versions=dict(self.versions),
            options=dict(options),
            **counts,
        )
        files.write_json(folder / FACTS, facts.model_dump())


def mark(tokenizer: Any) -> str | None:
    """Return the SHA-256 of all that a tokenizer's ids follow from; None for one that is not of `tokenizers`."""
    # A first call takes off what its file says of padding and truncation.
    tokenizer("a")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    tokens = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, *tokenizer.all_special_tokens]
    told = [type(tokenizer).__name__, tokenizer.chat_template, getattr(tokenizer, "split_special_tokens", None), tokens]
    return hashlib.sha256((json.dumps(told) + backend.to_str()).encode()).hexdigest()


def _batch(part: EncodedPart) -> pa.RecordBatch:
    import pyarrow as pa

    block = part.block
    begins = np.concatenate([[0], np.cumsum(block.lengths)]).astype(np.int32)
    return pa.RecordBatch.from_pydict(
        {
            "ids": pa.ListArray.from_arrays(begins, block.ids),
            "trained": pa.ListArray.from_arrays(begins, block.trained),
            "class": block.classes,
            "source": part.sources,
        }
    )


def _mapped(path: Path, facts: CacheFacts) -> tuple[EncodedRows, np.ndarray]:
    """Map rows from a file; no token is read before it is used."""
    import pyarrow as pa

    try:
        batches = list(pa.ipc.open_stream(pa.memory_map(str(path))))
        columns = [{name: batch.column(name) for name in ("ids", "trained", "class", "source")} for batch in batches]
        blocks = [
            RowBlock(
                column["ids"].values.to_numpy(),
                column["trained"].values.to_numpy(),
                np.diff(column["ids"].offsets.to_numpy()).astype(np.int64),
                column["class"].to_numpy(),
            )
            for column in columns
        ]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise PeftkitError(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    sources = np.concatenate([np.zeros(0, np.int64), *(column["source"].to_numpy() for column in columns)])
    rows = EncodedRows(blocks, facts.digest)
    if len(rows) != facts.rows:
        raise PeftkitError(f"{path} holds {len(rows)} rows, and {facts.rows} were written.")
    return rows, sources
