"""A user's own conversations or prompts with outputs, as JSON lines in any of the usual forms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit.data.example import LABEL, Example, Role, Turn
from peftkit.data.records import keys, kind, member, read_json_lines, shown, text
from peftkit.data.splits import split_files
from peftkit.errors import PeftkitError
from peftkit.tasks.task import TASKS, Task

FORMS = {
    "prompt and completion": ("prompt", "completion"),
    "Alpaca (instruction, optional input, output)": ("instruction", "output"),
    "chat (messages)": ("messages",),
    "chat (conversations)": ("conversations",),
}
"""The forms of a line, and the keys that tell each."""
LABELLED = (
    ("prompt",),
    ("text",),
    ("sentence",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
)
"""Keys of the text, or the pair of texts, of a line that has a `label` beside them."""
ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


class JSONLines(Task):
    """Your own examples, one JSON object a line: prompt and completion, Alpaca, chat messages, or text and label.

    `dataset.path` is one file, or a folder with `train.jsonl`, `validation.jsonl` and `test.jsonl`, of which training
    needs the first alone. Messages are `{role, content}` or `{from, value}`; the last one is the assistant's. A label
    is a text or a whole number, beside a `prompt`, `text` or `sentence`, or a pair such as `premise` and `hypothesis`.
    """

    name = "jsonl"
    metrics = ("bleu", "rouge_l")
    headline = "BLEU-4"
    max_new_tokens = 256

    def read(self, folder: Path, split: str) -> list[Example]:
        """Read the file or files of a split."""
        return [example for path in split_files(folder, split, (".jsonl",)) for example in self.read_file(path)]

    def read_file(self, path: Path) -> list[Example]:
        """Read one file; which form a line has is told by its keys, line by line."""
        examples = [
            _example(record, f"{path.name}:{line}", f"{path}, line {line}") for line, record in read_json_lines(path)
        ]
        if not examples:
            raise PeftkitError(f"{path} is empty; JSON lines are wanted, each of one of the forms {'; '.join(FORMS)}.")
        return examples


def _example(record: Mapping[str, Any], identity: str, place: str) -> Example:
    """Turn a line of any form into an example."""
    forms = [form for form, wanted in FORMS.items() if all(key in record for key in wanted)]
    if not forms and LABEL in record:
        return _labelled(record, identity, place)
    if len(forms) != 1:
        fault = f"fits {' and '.join(forms)}" if forms else "fits no form"
        raise PeftkitError(
            f"{place}: the line {fault}; its keys are {keys(record)}. Allowed is one of: {'; '.join(FORMS)}; "
            "text and label."
        )
    (form,) = forms
    first, *last = FORMS[form]
    if not last:
        turns = _conversation(record[first], place, first)
    else:
        prompt = text(record[first], place, first)
        given = record.get("input")
        if first == "instruction" and given is not None and text(given, place, "input", empty=True).strip():
            prompt += f"\n\n{given}"
        turns = (Turn("user", prompt), Turn("assistant", text(record[last[0]], place, last[0], empty=True)))
    return Example(identity, turns, (turns[-1].text,))


def _labelled(record: Mapping[str, Any], identity: str, place: str) -> Example:
    """Turn a line with a label into an example without an answer; two texts stand on a line each."""
    named = next((names for names in reversed(LABELLED) if all(name in record for name in names)), None)
    if named is None:
        allowed = "; ".join(" and ".join(names) for names in LABELLED)
        raise PeftkitError(f"{place}: beside '{LABEL}' the line has {keys(record)}. Allowed is one of: {allowed}.")
    label = record[LABEL]
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise PeftkitError(f"{place}: '{LABEL}' is {kind(label)}, and a class is wanted: text or a whole number.")
    label = label if isinstance(label, int) else text(label, place, LABEL)
    prompt = "\n".join(text(record[name], place, name) for name in named)
    return Example(identity, (Turn("user", prompt),), (str(label),), {LABEL: label})


def _conversation(messages: Any, place: str, key: str) -> tuple[Turn, ...]:
    """Return the turns of a list of messages."""
    if not isinstance(messages, list) or not messages:
        raise PeftkitError(
            f"{place}: '{key}' is {kind(messages)}{' of no message' if messages == [] else ''}; messages are wanted."
        )
    turns = []
    for number, message in enumerate(messages):
        at = f"{place}, {key}[{number}]"
        named = ("from", "value") if isinstance(message, Mapping) and "from" in message else ("role", "content")
        role, said = (member(message, at, name, str, "message") for name in named)
        if role not in ROLES:
            raise PeftkitError(f"{at}: the role '{shown(role)}' is unknown. Allowed: {', '.join(ROLES)}.")
        turns.append(Turn(ROLES[role], text(said, at, named[1], empty=True)))
    if turns[-1].role != "assistant":
        raise PeftkitError(
            f"{place}: the last message is the {turns[-1].role}'s, and it must be the assistant's, to learn from."
        )
    return tuple(turns)


TASKS.add(JSONLines.name, JSONLines())
