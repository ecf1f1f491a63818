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
from typing import Any

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.metrics import Scores, metric
from peftkit.metrics.files import known

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
OUT_OF_DOMAIN = ("reddit", "science")
FIELDS = ("id", "turn_id", "answer")
Key = tuple[str, int]


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
    entries = files.read_json(path)
    if not isinstance(entries, list) or not entries:
        raise PeftkitError(f"{path}: a JSON list of objects with id, turn_id and answer is wanted, with at least one.")
    answers: dict[Key, str] = {}
    for number, entry in enumerate(entries, 1):
        place = f"{path}, entry {number}"
        if isinstance(entry, dict):
            known(entry, FIELDS, place)
        match entry:
            case {"id": str(id), "turn_id": int(turn), "answer": str(answer)}:
                if (id, turn) in answers:
                    raise PeftkitError(f"{place}: turn {turn} of '{id}' is answered twice.")
                answers[id, turn] = answer
            case _:
                raise PeftkitError(f"{place}: not an object with id (text), turn_id (number) and answer (text).")
    return answers


def read_turns(path: Path) -> dict[Key, Question]:
    """Read every turn of a file in the official layout, with all its human answers."""
    content = files.read_json(path)
    conversations = content.get("data") if isinstance(content, dict) else None
    if not isinstance(conversations, list) or not conversations:
        raise PeftkitError(
            f"{path}: an object with a list of conversations under 'data' is wanted (the official layout)."
        )
    turns: dict[Key, Question] = {}
    for number, conversation in enumerate(conversations, 1):
        try:
            turns |= read_conversation(conversation)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            fault = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise PeftkitError(f"{path}, conversation {number}: not in the official layout ({fault}).") from None
    if not turns:
        raise PeftkitError(f"{path}: no questions in it: there is nothing to score.")
    return turns


def read_conversation(conversation: Mapping[str, Any]) -> dict[Key, Question]:
    """Return the turns of one conversation; a KeyError, TypeError or ValueError tells what is wrong with it."""
    people = [conversation["answers"], *conversation.get("additional_answers", {}).values()]
    source = conversation.get("source")
    if source is not None and source not in DOMAINS:
        raise ValueError(f"source '{source}' is none of {', '.join(DOMAINS)}")
    turns = {}
    for index, question in enumerate(conversation["questions"]):
        number = question["turn_id"]
        given = [answers[index] for answers in people]
        if any(answer["turn_id"] != number for answer in given):
            raise ValueError(f"the answers to question {index + 1} are not to turn {number}")
        texts = tuple(answer["input_text"] for answer in given)
        turns[str(conversation["id"]), number] = Question(texts, source)
    return turns
