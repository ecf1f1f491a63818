"""Files of instructions with worked responses and short answers, as LLM-Adapters publishes them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from peftkit.data.example import Example, Turn
from peftkit.data.examples import Examples
from peftkit.data.records import kind, member, text
from peftkit.data.subset import permutation
from peftkit.errors import PeftkitError
from peftkit.files import read_json
from peftkit.tasks.task import Task

HELD_OUT = 120
"""Validation examples that are taken out of the training file, as the official code does, or a tenth where less."""


class Instructions(Task):
    """A JSON list of objects with `instruction`, `input`, `output` and `answer`; the response is trained on.

    What is scored is the short answer that stands in a response. The training file has a fixed part for validation; the
    test is `test.json`, one folder for each of the sets that are scored.
    """

    suffix: ClassVar[str] = ".json"
    short: ClassVar[tuple[type, ...]] = (str,)
    """What an answer may be."""

    def examples(self, paths: Sequence[Path], split: str) -> Examples:
        def read() -> list[Example]:
            whole = [example for path in paths for example in self.read_file(path)]
            if split == "test":
                return whole
            out = set(permutation(len(whole), 0)[: min(HELD_OUT, len(whole) // 10)])
            return [example for at, example in enumerate(whole) if (at in out) == (split == "validation")]

        return Examples.at_once(read)

    def read_file(self, path: Path) -> list[Example]:
        records = read_json(path)
        if not isinstance(records, list):
            raise PeftkitError(f"{path}: found {kind(records)}, and a list of objects is wanted.")
        return [self._example(f"{path.name}:{at}", f"{path}, [{at}]", record) for at, record in enumerate(records)]

    def key(self, example: Example) -> Hashable:
        return example.id

    def _example(self, identity: str, place: str, record: Any) -> Example:
        instruction, output = (
            text(member(record, place, key, str, "object"), place, key).strip() for key in ("instruction", "output")
        )
        more = text(record.get("input", ""), place, "input", empty=True).strip()
        prompt = f"{instruction}\n\n{more}" if more else instruction
        answer = self.answer(record, place)
        return Example(identity, (Turn("user", prompt), Turn("assistant", output)), (answer,))

    def answer(self, record: Any, place: str) -> str:
        """Return the short answer of a record as text; PeftkitError where it is none."""
        given = record.get("answer")
        if isinstance(given, bool) or not isinstance(given, self.short) or not str(given).strip():
            found = "there is none" if "answer" not in record else f"found {kind(given)}"
            wanted = " or ".join("text" if each is str else "a number" for each in dict.fromkeys(self.short[:2]))
            raise PeftkitError(f"{place}: 'answer': {found}, and {wanted} is wanted.")
        return str(given).strip()
