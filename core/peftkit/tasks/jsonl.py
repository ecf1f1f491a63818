"""A user's own conversations, prompts with outputs or texts, in any of the usual files and forms."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from peftkit.data.example import LABEL, Example, Role, Turn
from peftkit.data.examples import Examples, Item
from peftkit.data.messages import NAMES as MESSAGE
from peftkit.data.messages import conversation, opening
from peftkit.data.records import keys, kind, text
from peftkit.data.tables import Columns, Record, read_records
from peftkit.errors import PeftkitError, hint
from peftkit.keys import KEY
from peftkit.tasks.own_files import OwnFiles
from peftkit.tasks.task import TASKS

FORMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "prompt and completion": (("prompt", "completion"), ("system", "tools")),
    "Alpaca (instruction, optional input, output)": (("instruction", "output"), ("input", "system", "history")),
    "chat (messages)": (("messages",), ("system", "tools")),
    "chat (conversations)": (("conversations",), ("system", "tools")),
    "document (text)": (("text",), ()),
}
"""The forms of a record: the keys that tell each, and those that may stand beside them."""
BESIDE = (KEY, "id", "idx")
"""What may stand beside any form: the key by which adapters are chosen, and what names a record."""
WORD = re.compile("[A-Za-z0-9 ]{2,}")
TEXTS = tuple(text for _, text in MESSAGE)
EXCHANGE: tuple[Role, Role] = ("user", "assistant")
LABELLED = (
    ("prompt",),
    ("text",),
    ("sentence",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
)
"""Keys of the text, or the pair of texts, of a record that has a `label` beside them."""


class JSONLines(OwnFiles):
    """Your own examples as JSON lines, a JSON array, CSV or Parquet: prompts with outputs, messages, texts or labels.

    `dataset.path` is one file, or a folder with `train.jsonl` (or another ending), `validation.jsonl` and `test.jsonl`,
    of which training needs the first alone. Messages are `{role, content}` or `{from, value}`; the last one is the
    assistant's. `text` alone is a document, every token of which is trained. A label is a text or a whole number,
    beside a `prompt`, `text` or `sentence`, or a pair such as `premise` and `hypothesis`. A `key` beside any of them
    says by which adapters a record is read, where the method has several.
    """

    name = "jsonl"
    metrics = ("bleu", "rouge_l")
    headline = "BLEU-4"
    max_new_tokens = 256

    def items(self, path: Path) -> Iterator[Item]:
        """Yield the records of a file; which form one has is told by its keys, one by one."""
        item = None
        for record in read_records(path):
            item = _Item(record, self.columns)
            yield item
        if item is None:
            raise PeftkitError(f"{path} is empty; records are wanted, each of one of the forms {'; '.join(FORMS)}.")

    def key(self, example: Example) -> Hashable:
        return example.prompt, example.meta.get(KEY)

    def group(self, examples: Iterable[Example], limit: int | None = None) -> list[Example]:
        """Return one example per distinct input; a document, which has no answer to compare, is refused."""
        first = examples if limit is None or not isinstance(examples, Examples) else self._first(examples, limit)
        return super().group(map(_answering, first), limit)

    def _first(self, examples: Examples, limit: int) -> Iterator[Example]:
        """Yield the examples of the first `limit` inputs, all of them, and few of the others."""
        inputs: set[Any] = set()
        words: re.Pattern[bytes] | None = None
        for item in examples.items():
            if words is not None and isinstance(item, _Item) and item.record.lacks(words):
                continue
            example = item()
            inputs.add(self.key(example))
            if words is None and len(inputs) == limit:
                words = _words(prompt for prompt, _ in inputs)
            yield example


class _Item(NamedTuple):
    """The example of a record, still to be made."""

    record: Record
    columns: Columns

    def __call__(self) -> Example:
        return _example(self.record, self.columns)


def _words(inputs: Iterable[Any]) -> re.Pattern[bytes] | None:
    """Return what finds the longest run of plain letters of each input; None where one has none."""
    found = [max((word for turn in turns for word in WORD.findall(turn.text)), key=len, default="") for turns in inputs]
    return re.compile("|".join(found).encode()) if all(found) else None


def _answering(example: Example) -> Example:
    if example.turns[-1].role == "text":
        raise PeftkitError(f"{example.id} is a document, and only records with an answer can be scored.")
    return example


def _example(record: Record, columns: Columns) -> Example:
    """Turn a record of any form into an example."""
    values, place = columns.of(record), record.place
    forms = _forms(tuple(values))
    if LABEL in values and forms in ([], ["document (text)"]):
        return _labelled(values, record.identity, place)
    if len(forms) != 1:
        fault = f"fits {' and '.join(forms)}" if forms else "fits no form"
        raise PeftkitError(
            f"{place}: the record {fault}; its keys are {keys(values)}. Allowed is one of: {'; '.join(FORMS)}; "
            "text and label. `dataset.columns` gives keys of other names."
        )
    wanted, beside = FORMS[forms[0]]
    _check(values, (*wanted, *beside, *BESIDE), place)
    first, second = wanted[0], wanted[-1]
    if first == "text":
        turns = (Turn("text", text(values[first], place, first)),)
    elif first == second:
        turns = opening(values, conversation(_without(values[first], columns), place, first), place)
    else:
        turns = _answered(values, first, second, columns, place)
    return Example(record.identity, turns, (turns[-1].text,), _key(values, place))


@lru_cache(maxsize=64)
def _forms(names: tuple[str, ...]) -> list[str]:
    """List the forms of records with these keys."""
    return [form for form, (wanted, _) in FORMS.items() if all(key in names for key in wanted)]


def _answered(values: Mapping[str, Any], asked: str, said: str, columns: Columns, place: str) -> tuple[Turn, ...]:
    """Return the turns of a prompt, or an instruction, with its output; each is text or a list of messages."""
    given, answer = values.get("input"), values[said]
    last: tuple[Turn, ...]
    if isinstance(answer, list):
        last = conversation(_without(answer, columns), place, said)
    else:
        last = (Turn("assistant", text(answer, place, said, empty=True)),)
    if isinstance(values[asked], list):
        first = conversation(_without(values[asked], columns), place, asked, answered=False)
    else:
        prompt = text(values[asked], place, asked, empty=asked == "prompt")
        if given is not None and text(given, place, "input", empty=True).strip():
            prompt += f"\n\n{given}"
        if not prompt.strip():
            document = last[0].text if len(last) == 1 else ""
            if not document.strip():
                raise PeftkitError(f"{place}: '{asked}' is empty, and text is wanted.")
            return (Turn("text", document),)
        first = (Turn("user", prompt),)
    return opening(values, (*_history(values.get("history"), place), *first, *last), place)


def _history(history: Any, place: str) -> list[Turn]:
    """Return the turns of earlier exchanges, pairs of an instruction and its output."""
    if history is None:
        return []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise PeftkitError(f"{place}: 'history' is a list of pairs [instruction, output].")
    return [
        Turn(role, text(said, f"{place}, history[{number}]", role, empty=role == "assistant"))
        for number, pair in enumerate(history)
        for role, said in zip(EXCHANGE, pair, strict=True)
    ]


def _without(messages: Any, columns: Columns) -> Any:
    """Leave out of messages, and of the parts of their content, the keys that the recipe says to ignore."""
    if isinstance(messages, Mapping):
        kept = {key: value for key, value in messages.items() if key not in columns.ignored}
        return kept | {key: _without(kept[key], columns) for key in TEXTS if isinstance(kept.get(key), list)}
    return [_without(each, columns) for each in messages] if isinstance(messages, list) else messages


def _check(values: Mapping[str, Any], allowed: tuple[str, ...], place: str) -> None:
    """Refuse a key that nothing reads, unless it is null: what a user wrote there might be meant to be learnt."""
    strange = next((key for key, value in values.items() if key not in allowed and value is not None), None)
    if strange is not None:
        raise PeftkitError(
            f"{place}: the record has '{strange}', which is not read.{hint(strange, allowed)} Allowed here: "
            f"{', '.join(allowed)}; `dataset.ignore: [{strange}]` leaves it out, `dataset.columns` gives keys of other "
            "names."
        )


def _key(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the key of a record, where it has one, as the fields of its example."""
    key = values.get(KEY)
    if key is None:
        return {}
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise PeftkitError(f"{place}: '{KEY}' is {kind(key)}, and text or a whole number is wanted.")
    return {KEY: str(key) if isinstance(key, int) else text(key, place, KEY)}


def _labelled(record: Mapping[str, Any], identity: str, place: str) -> Example:
    """Turn a record with a label into an example without an answer; two texts stand on a line each."""
    named = next((names for names in reversed(LABELLED) if all(name in record for name in names)), None)
    if named is None:
        allowed = "; ".join(" and ".join(names) for names in LABELLED)
        raise PeftkitError(f"{place}: beside '{LABEL}' the record has {keys(record)}. Allowed is one of: {allowed}.")
    _check(record, (LABEL, *named, *BESIDE), place)
    label = record[LABEL]
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise PeftkitError(f"{place}: '{LABEL}' is {kind(label)}, and a class is wanted: text or a whole number.")
    label = label if isinstance(label, int) else text(label, place, LABEL)
    prompt = "\n".join(text(record[name], place, name) for name in named)
    return Example(identity, (Turn("user", prompt),), (str(label),), {LABEL: label, **_key(record, place)})


TASKS.add(JSONLines.name, JSONLines())
