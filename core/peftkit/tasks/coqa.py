"""CoQA: questions in conversation about a passage (Reddy et al. 2019, arXiv:1808.07042)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftkit.data.example import Example, Turn
from peftkit.data.hub import HubDataset
from peftkit.data.records import member, shown, text
from peftkit.errors import PeftkitError
from peftkit.files import read_json
from peftkit.metrics import Scores, coqa
from peftkit.tasks.task import TASKS, Task


class CoQA(Task):
    """Answer each question of a conversation about a passage, given the passage and the turns before.

    The test split is hidden, so the development split serves as validation and as test. `meta` of an example:
    conversation (its id), turn (its turn_id), source (the domain, where the file tells it).
    """

    name = "coqa"
    hub = HubDataset("stanfordnlp/coqa", None, {"test": "validation"})
    metrics = ("coqa",)
    headline = "f1"
    max_new_tokens = 48
    stop = ("\n",)
    suffix = ".json"
    files = {
        "train": ("coqa-train-v1.0.json", "coqa-train*.json"),
        "validation": ("coqa-dev-v1.0.json", "coqa-dev*.json"),
        "test": ("coqa-dev-v1.0.json", "coqa-dev*.json"),
    }

    def read_file(self, path: Path) -> list[Example]:
        """Read one JSON file, one example per turn with all answers to it."""
        conversations = member(read_json(path), str(path), "data", list, "file")
        return [
            example
            for number, conversation in enumerate(conversations)
            for example in _turns(conversation, f"{path}, data[{number}]")
        ]

    def from_records(self, records: Iterable[Mapping[str, Any]], split: str) -> list[Example]:
        """Read the columns `story`, `questions` and `answers`; the hub has one answer per turn."""
        examples: list[Example] = []
        for row, record in enumerate(records):
            place = f"{self.hub}, {split} row {row}"
            answers = member(
                member(record, place, "answers", dict, "row"), place, "input_text", list, "row's 'answers'"
            )
            conversation = {
                "id": f"{split}-{row}",
                "source": record.get("source"),
                "story": record.get("story"),
                "questions": [
                    _numbered(at, asked) for at, asked in enumerate(member(record, place, "questions", list), 1)
                ],
                "answers": [_numbered(at, given) for at, given in enumerate(answers, 1)],
            }
            examples += _turns(conversation, place)
        return examples

    def key(self, example: Example) -> Hashable:
        return example.id

    def parts(self, example: Example) -> Iterable[str]:
        """Name the domain of the conversation, where the file tells it, and which of the two kinds it is of."""
        return coqa.domains(example.meta.get("source"))

    def conversation(self, example: Example) -> Hashable:
        return example.meta["conversation"]

    def said(self, examples: Sequence[Example], answers: Sequence[str]) -> Example:
        prompt = examples[0].prompt[-1].text
        for before, after, answer in zip(examples, examples[1:], answers, strict=False):
            gold = f"{before.prompt[-1].text} {before.turns[-1].text}"
            prompt += f" {answer}{after.prompt[-1].text.removeprefix(gold)}"
        return replace(examples[-1], turns=(Turn("user", prompt), examples[-1].turns[-1]))

    def score_files(self, predictions: Path, references: Path) -> Scores:
        """Score as the official script does, by domain too, where both files are of the official form."""
        if predictions.suffix == references.suffix == self.suffix:
            return coqa.score_files(predictions, references)
        return super().score_files(predictions, references)


def _numbered(turn: int, said: Any) -> dict[str, Any]:
    return {"turn_id": turn, "input_text": said}


def _said(conversation: Any, place: str, key: str) -> list[str]:
    """Return what is said in each turn of `questions` or `answers`, with the turns' numbers checked."""
    texts = []
    for number, turn in enumerate(member(conversation, place, key, list, "conversation")):
        at = f"{place}.{key}[{number}]"
        if member(turn, at, "turn_id", int, "turn") != number + 1:
            raise PeftkitError(f"{at}: 'turn_id' is {shown(turn['turn_id'])}, and {number + 1} is wanted.")
        texts.append(text(member(turn, at, "input_text", str, "turn"), at, "input_text").strip())
    return texts


def _turns(conversation: Any, place: str) -> Iterator[Example]:
    """Yield one example per turn: the story and the turns before with their first answers, then the question."""
    identity = member(conversation, place, "id", str, "conversation")
    story = text(member(conversation, place, "story", str, "conversation"), place, "story").strip()
    questions, first = _said(conversation, place, "questions"), _said(conversation, place, "answers")
    sides = {"answers": first}
    if conversation.get("additional_answers") is not None:
        others = member(conversation, place, "additional_answers", dict)
        sides |= {f"additional_answers.{key}": _said(others, f"{place}.additional_answers", key) for key in others}
    for name, answers in sides.items():
        if len(answers) != len(questions):
            raise PeftkitError(f"{place}: {len(questions)} questions, and {len(answers)} {name}.")
    history = ""
    for number, (asked, answer) in enumerate(zip(questions, first, strict=True)):
        history += f"\nQ: {asked}\nA:"
        yield Example(
            f"{identity}/{number + 1}",
            (Turn("user", f"{story}\n{history}"), Turn("assistant", answer)),
            tuple(answers[number] for answers in sides.values()),
            {"conversation": identity, "turn": number + 1, "source": conversation.get("source")},
        )
        history += f" {answer}"


TASKS.add(CoQA.name, CoQA())
