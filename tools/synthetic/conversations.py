"""Short stories with the questions that follow from each sentence: answer, and the words that show it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from synthetic import names, words
from synthetic.facts import PRONOUNS, TOPICS, Facts, predicates, sample
from synthetic.grammar import agree, expand, pick, sentence

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Asked:
    """A question, its answers (the main one first) and its evidence in the story; without evidence it has no answer."""

    question: str
    answers: tuple[str, ...]
    evidence: str


@dataclass(frozen=True)
class Conversation:
    """A story from a domain of the data set and what is asked on it, in order."""

    domain: str
    story: str
    turns: tuple[Asked, ...]


# Each scene is a sentence and its questions: the question, the answers between slashes, the evidence.
SCENES = (
    (
        "{n} lived in a small house near the {out} with {p} {rel} {o}.",
        (
            (
                "Where did {n} live?",
                "near the {out}/in a small house near the {out}",
                "in a small house near the {out}",
            ),
            ("With whom?", "{p} {rel} {o}/{o}", "with {p} {rel} {o}"),
            ("Did {h} live alone?", "no", "with {p} {rel} {o}"),
        ),
    ),
    (
        "On {day} {h} lost a {colour} {thing} in the {room}.",
        (
            ("What did {h} lose?", "a {colour} {thing}/a {thing}", "lost a {colour} {thing}"),
            ("What color was it?", "{colour}", "a {colour} {thing}"),
            ("When?", "on {day}/{day}", "On {day}"),
        ),
    ),
    (
        '"I will help you to find it," said {o}.',
        (
            ("Who wanted to help?", "{o}", "said {o}"),
            ("Did {o} want to help?", "yes", '"I will help you to find it," said {o}'),
        ),
    ),
    (
        "They looked under the bed and behind the door, but they found only {num} coins.",
        (
            ("How many coins did they find?", "{num}", "only {num} coins"),
            (
                "Where did they look?",
                "under the bed and behind the door/under the bed",
                "under the bed and behind the door",
            ),
        ),
    ),
    (
        "Then a {animal} came in, and {n} was {feel}.",
        (
            ("Which animal came in?", "a {animal}/the {animal}", "a {animal} came in"),
            ("How did {n} feel?", "{feel}", "{n} was {feel}"),
        ),
    ),
    (
        "The {animal} had carried the {thing} to the {out2}.",
        (
            ("Where was the {thing}?", "at the {out2}/the {out2}", "to the {out2}"),
            ("Who had carried it there?", "the {animal}", "The {animal} had carried the {thing}"),
        ),
    ),
    (
        "In the evening {o} made {dish}, and they all ate it together.",
        (
            ("What did they eat?", "{dish}", "{o} made {dish}"),
            ("Who made it?", "{o}", "{o} made {dish}"),
            ("When?", "in the evening/the evening", "In the evening"),
        ),
    ),
)
NOT_TOLD = (
    "How old is {n}?",
    "What is the name of the {animal}?",
    "Where does {n} go to school?",
    "What does {n} drink?",
)


def write_story(rng: Random) -> Conversation:
    """Tell a story in four to seven sentences and ask on each of them."""
    name, he = names.first_name(rng)
    out, out2 = rng.sample(words.OUTDOORS, 2)
    values = {
        "n": name,
        "h": he,
        "p": PRONOUNS[he][1],
        "o": next(other for other in iter(lambda: names.first_name(rng)[0], "") if other != name),
        "out": out,
        "out2": out2,
        "rel": pick(rng, words.RELATIVES),
        "day": pick(rng, words.DAYS),
        "colour": pick(rng, words.COLOURS[:8]),
        "thing": pick(rng, tuple(word for word in words.OBJECTS if word[0] not in "aeio")),
        "room": pick(rng, words.ROOMS),
        "num": rng.randint(2, 9),
        "animal": pick(rng, tuple(word for word in words.ANIMALS if word[0] not in "aeio")),
        "feel": pick(rng, words.FEELINGS),
        "dish": pick(rng, words.DISHES),
    }
    values["colour"] = "blue" if str(values["colour"])[0] in "aeio" else values["colour"]
    turns, sentences = [], []
    for scene, questions in SCENES[: rng.randint(4, len(SCENES))]:
        sentences.append(expand(scene, rng, **values))
        for question, answers, evidence in sorted(rng.sample(questions, min(2, len(questions))), key=questions.index):
            given = tuple(expand(answer, rng, **values) for answer in answers.split("/"))
            turns.append(Asked(expand(question, rng, **values), given, expand(evidence, rng, **values)))
    if rng.random() < 0.5:
        turns.insert(rng.randint(1, len(turns)), Asked(expand(pick(rng, NOT_TOLD), rng, **values), (UNKNOWN,), ""))
    return Conversation("mctest", " ".join(sentences), tuple(turns[:12]))


def write_article(rng: Random) -> Conversation:
    """Write an article on one subject, a fact a sentence, and ask for the facts."""
    facts = sample(
        TOPICS[pick(rng, ("person", "player", "building", "city", "team", "university", "hotel"))], rng, 6, 8
    )
    statements = [
        (prop, value, expand(pick(rng, predicates(prop)), rng, v=value))
        for prop, value in facts.of
        if predicates(prop) and prop.question
    ]
    subject = PRONOUNS[facts.pronoun][0]
    story = [
        sentence(agree(f"{facts.name if at == 0 else subject} {predicate}"))
        for at, (_, _, predicate) in enumerate(statements)
    ]
    turns = []
    for at, (prop, value, predicate) in enumerate(statements):
        objective = (
            {"he": "him", "she": "her"}.get(subject, subject)
            if prop.question.endswith(("to {s}?", "is {s}?"))
            else subject
        )
        asked = prop.question.replace(
            "{s}", facts.name if at == 0 else subject if " {s} " in prop.question else objective
        )
        turns.append(Asked(asked, (value, agree(predicate)), agree(predicate)))
        if rng.random() < 0.3:
            turns.append(check_value(facts, prop.value(rng), value, agree(predicate)))
    return Conversation("wikipedia", " ".join(story), tuple(turns[:12]))


def check_value(facts: Facts, other: object, value: str, evidence: str) -> Asked:
    """Ask whether the last answer was another value."""
    return Asked(f"Was it {other}?", ("yes" if str(other) == value else "no",), evidence)
