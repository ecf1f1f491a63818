"""Facts about one invented subject, and prose that restates them: the heart of every genre that copies names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from peftkit.registry import Registry
from synthetic.grammar import agree, enumerate_words, expand, pick, possessive, sentence

Sampler = Callable[[Random], object]

PRONOUNS = {"it": ("it", "its"), "he": ("he", "his"), "she": ("she", "her")}


@dataclass(frozen=True)
class Property:
    """One thing that can be said of a subject: its labels, its values and the phrases that express it.

    A phrase is a predicate (`is in {v}`) unless it names the subject itself (`{v} is the capital of {s}`).
    """

    labels: tuple[str, ...]
    value: Sampler
    phrases: tuple[str, ...]
    question: str = ""


@dataclass(frozen=True)
class Topic:
    """A kind of subject with its properties; `name` returns the name, or the name and its pronoun."""

    kinds: tuple[str, ...]
    name: Sampler
    properties: tuple[Property, ...]


@dataclass(frozen=True)
class Facts:
    """One subject with some of its properties; `of` are pairs of property and value."""

    topic: Topic
    name: str
    kind: str
    pronoun: str
    of: tuple[tuple[Property, str], ...]


TOPICS: Registry[Topic] = Registry("topic", "synthetic.topics")


def sample(topic: Topic, rng: Random, least: int = 2, most: int = 7) -> Facts:
    """Invent a subject of `topic` with `least` to `most` facts."""
    named = topic.name(rng)
    name, pronoun = named if isinstance(named, tuple) else (str(named), "it")
    count = min(len(topic.properties), rng.randint(least, most))
    chosen = rng.sample(topic.properties, count)
    if rng.random() < 0.5:
        chosen.sort(key=topic.properties.index)
    return Facts(topic, name, pick(rng, topic.kinds), pronoun, tuple((each, str(each.value(rng))) for each in chosen))


def any_facts(rng: Random, least: int = 2, most: int = 7) -> Facts:
    """Invent a subject of any topic."""
    return sample(TOPICS[pick(rng, TOPICS.names())], rng, least, most)


def predicates(prop: Property) -> list[str]:
    """List the phrases that follow the subject."""
    return [phrase for phrase in prop.phrases if "{s}" not in phrase and "{p}" not in phrase]


def clauses(prop: Property) -> list[str]:
    """List the phrases that name the subject themselves."""
    return [phrase for phrase in prop.phrases if "{s}" in phrase or "{p}" in phrase]


def _mention(facts: Facts, rng: Random, first: bool) -> str:
    if first or rng.random() < 0.25:
        return facts.name
    if rng.random() < 0.75 or facts.pronoun != "it":
        return PRONOUNS[facts.pronoun][0]
    return f"the {facts.kind}"


def _single(facts: Facts, fact: tuple[Property, str], rng: Random, subject: str) -> tuple[str, bool]:
    """Return a clause on one fact, and whether further predicates of the subject can follow."""
    prop, value = fact
    wholes, parts = clauses(prop), predicates(prop)
    if wholes and (not parts or rng.random() < 0.35):
        owner = PRONOUNS[facts.pronoun][1] if subject == facts.pronoun else possessive(subject)
        phrase = pick(rng, wholes)
        objective = subject if phrase.startswith("{s}") else {"he": "him", "she": "her"}.get(subject, subject)
        return expand(phrase, rng, s=objective, p=owner, v=value), False
    return f"{subject} {expand(pick(rng, parts), rng, v=value)}", True


def _opening(facts: Facts, fact: tuple[Property, str], rng: Random) -> str:
    parts = predicates(fact[0])
    phrase = expand(pick(rng, parts), rng, v=fact[1])
    if facts.pronoun == "it" and rng.random() < 0.6:
        return agree(f"{facts.name} is a(n) {facts.kind} that {phrase}")
    return agree(f"{facts.name}, a(n) {facts.kind}, {phrase}")


def describe(facts: Facts, rng: Random) -> str:
    """Restate every fact once, in one to four sentences."""
    remaining = list(facts.of)
    sentences = []
    while remaining:
        take = min(len(remaining), rng.choice((1, 1, 2, 2, 3)))
        group, remaining = remaining[:take], remaining[take:]
        first = not sentences
        if first and predicates(group[0][0]) and rng.random() < 0.35:
            text, is_open = _opening(facts, group[0], rng), True
        else:
            text, is_open = _single(facts, group[0], rng, _mention(facts, rng, first))
        joined = [fact for fact in group[1:] if is_open and predicates(fact[0])]
        remaining = [fact for fact in group[1:] if fact not in joined] + remaining
        more = [expand(pick(rng, predicates(prop)), rng, v=value) for prop, value in joined]
        text = enumerate_words([text, *more])
        sentences.append(sentence(text))
    return " ".join(sentences)
