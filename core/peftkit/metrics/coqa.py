"""Exact match and F1 of answers in a conversation, as CoQA's official script `evaluate-v1.0.py` computes them.

Reddy, Chen and Manning 2019, arXiv:1808.07042.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from peftkit import schemas
from peftkit.errors import PeftkitError
from peftkit.metrics import Scores, metric
from peftkit.metrics.files import known
from peftkit.schemas import Stored

ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
DOMAINS = {
    "mctest": "children_stories",
    "gutenberg": "literature",
    "race": "mid-high_school",
    "cnn": "news",
    "wikipedia": "wikipedia",
    "reddit": "reddit",
    "science": "science",
}
"""The report's name of each `source`."""
Source = Literal["mctest", "gutenberg", "race", "cnn", "wikipedia", "reddit", "science"]
OUT_OF_DOMAIN = ("reddit", "science")
FIELDS = ("id", "turn_id", "answer")
Key = tuple[str, int]
OFFICIAL = "The official layout is wanted: an object with a list of conversations under 'data'."


class StoredTurn(Stored):
    """A question or an answer, as a file has it."""

    turn_id: int
    input_text: str


class StoredConversation(Stored):
    """A conversation of the official layout."""

    id: str
    source: Source | None = None
    questions: list[StoredTurn]
    answers: list[StoredTurn]
    additional_answers: dict[str, list[StoredTurn]] = {}


class StoredConversations(Stored):
    """A file of the official layout."""

    data: Annotated[list[dict[str, Any]], Field(min_length=1)]


class StoredPrediction(Stored):
    """A prediction."""

    id: str
    turn_id: int
    answer: str


ENTRIES = Annotated[list[dict[str, Any]], Field(min_length=1)]


@dataclass(frozen=True)
class Question:
    """One question: its human answers, and the `source` of its conversation where that is known."""

    answers: tuple[str, ...]
    source: str | None


@metric("coqa", "em", "f1")
def coqa(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the means over turns of exact match and F1, in percent as the official script prints them, not rounded."""
    return means(score_turn(prediction, group) for prediction, group in zip(predictions, references, strict=True))


def normalize(answer: str) -> str:
    """Lower the case, delete ASCII punctuation and the words a, an and the, and leave single spaces."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(NO_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """Return 1 where the two are the same after normalization, else 0."""
    return float(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall of the words; 1 where neither has any, 0 where one has none."""
    ours, theirs = normalize(prediction).split(), normalize(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


def score_turn(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """Return (exact match, F1) in 0..1.

    With several human answers each is left out in turn, as if its author were being scored, and the best over the
    others is averaged: so the figure can be compared with a person's.
    """
    groups = [[*answers[:i], *answers[i + 1 :]] for i in range(len(answers))] if len(answers) > 1 else [list(answers)]
    return (
        sum(max(exact_match(prediction, answer) for answer in group) for group in groups) / len(groups),
        sum(max(f1(prediction, answer) for answer in group) for group in groups) / len(groups),
    )


def score_people(answers: Sequence[str]) -> tuple[float, float]:
    """Return the mean (exact match, F1) of each human answer against the others, in 0..1: what people reach."""
    if len(answers) < 2:
        raise PeftkitError(
            f"coqa: people are scored against each other, and there is one answer only: {list(answers)}."
        )
    scores = [
        [max(measure(answer, other) for other in (*answers[:i], *answers[i + 1 :])) for i, answer in enumerate(answers)]
        for measure in (exact_match, f1)
    ]
    return sum(scores[0]) / len(answers), sum(scores[1]) / len(answers)


def domains(source: str | None) -> tuple[str, ...]:
    """Return the parts of the official report that a conversation of `source` counts in, besides `overall`."""
    domain = DOMAINS.get(source or "")
    return (domain, "out_domain" if domain in OUT_OF_DOMAIN else "in_domain") if domain else ()


def means(scores: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Return the mean exact match and F1 in percent; 0 of no turns."""
    turns = list(scores)
    count = max(1, len(turns))
    return {"em": 100 * sum(turn[0] for turn in turns) / count, "f1": 100 * sum(turn[1] for turn in turns) / count}


def report(turns: Mapping[Key, Question], scores: Mapping[Key, tuple[float, float]]) -> dict[str, dict[str, float]]:
    """Return em, f1 and the number of turns of every domain, `in_domain`, `out_domain` and `overall`, in percent.

    A turn without a score counts as 0.
    """
    groups: dict[str, list[Key]] = {domain: [] for domain in (*DOMAINS.values(), "in_domain", "out_domain", "overall")}
    for key, turn in turns.items():
        for part in (*domains(turn.source), "overall"):
            groups[part].append(key)
    return {
        name: {**means(scores.get(key, (0.0, 0.0)) for key in keys), "turns": len(keys)}
        for name, keys in groups.items()
    }


def score_files(predictions: Path, references: Path) -> Scores:
    """Score a JSON list of {id, turn_id, answer} against an official file: `em`, `f1`, the same by domain, and counts.

    A question without a prediction counts as 0, as in the official script, and is counted in `missing`. Raises
    PeftkitError for a prediction of a question that the references do not have.
    """
    turns, answers = read_turns(references), read_answers(predictions)
    extra = next((key for key in answers if key not in turns), None)
    if extra:
        raise PeftkitError(
            f"{predictions} answers turn {extra[1]} of '{extra[0]}', which {references} does not have. "
            "Give the predictions and the references of the same split."
        )
    full = report(turns, {key: score_turn(answer, turns[key].answers) for key, answer in answers.items()})
    overall = full.pop("overall")
    figures = Scores()
    figures |= {**overall, "missing": len(turns) - len(answers)}
    for name, group in full.items():
        if group["turns"]:
            figures |= {f"{name}/{key}": value for key, value in group.items()}
    return figures


def read_answers(path: Path) -> dict[Key, str]:
    """Read predictions, a JSON list of {id, turn_id, answer}."""
    answers: dict[Key, str] = {}
    wanted = "A JSON list of objects with id, turn_id and answer is wanted."
    for number, entry in enumerate(schemas.read(path, ENTRIES, wanted), 1):
        place = f"{path}, entry {number}"
        known(schemas.check(StoredPrediction, entry, place), FIELDS, place)
        key = entry["id"], entry["turn_id"]
        if key in answers:
            raise PeftkitError(f"{place}: turn {key[1]} of '{key[0]}' is answered twice.")
        answers[key] = entry["answer"]
    return answers


def read_turns(path: Path) -> dict[Key, Question]:
    """Read every turn of a file in the official layout, with all its human answers."""
    content = schemas.read(path, StoredConversations, OFFICIAL)
    turns: dict[Key, Question] = {}
    for number, conversation in enumerate(content["data"], 1):
        turns |= read_conversation(conversation, f"{path}, conversation {number}")
    if not turns:
        raise PeftkitError(f"{path}: no questions in it: there is nothing to score.")
    return turns


def read_conversation(found: Mapping[str, Any], place: str) -> dict[Key, Question]:
    """Return the turns of one conversation; PeftkitError where an answer is to another turn than its question."""
    conversation = StoredConversation.model_validate(schemas.check(StoredConversation, found, place))
    people = [conversation.answers, *conversation.additional_answers.values()]
    turns = {}
    for index, question in enumerate(conversation.questions):
        given = [answers[index] for answers in people if index < len(answers)]
        if len(given) < len(people) or any(answer.turn_id != question.turn_id for answer in given):
            raise PeftkitError(f"{place}: the answers to question {index + 1} are not to turn {question.turn_id}.")
        texts = tuple(answer.input_text for answer in given)
        turns[conversation.id, question.turn_id] = Question(texts, conversation.source)
    return turns
