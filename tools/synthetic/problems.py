"""Arithmetic word problems of one and two steps, with their worked solutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from synthetic import names, words
from synthetic.grammar import counted, expand, pick, plural


@dataclass(frozen=True)
class Step:
    """One line of a solution: the words before the sum, the sum, its result and the words after it."""

    before: str
    sum: str
    result: int
    after: str = ""


@dataclass(frozen=True)
class Problem:
    """A question with the steps that answer it; the last step's result is the answer."""

    question: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Cast:
    """Who and what one problem is about."""

    name: str
    he: str
    other: str
    thing: str
    things: str


def add(rng: Random, cast: Cast) -> Problem:
    """Return a problem on adding two numbers."""
    first, second = rng.randint(3, 60), rng.randint(2, 40)
    question = expand(
        "{n} has {a}. {o} gives {h} {b} more. How many {t} does {n} have [now|in total|altogether]?",
        rng,
        n=cast.name,
        a=counted(first, cast.thing),
        o=cast.other,
        h={"he": "him", "she": "her"}[cast.he],
        b=second,
        t=cast.things,
    )
    return Problem(question, (Step(f"{cast.name} has", f"{first}+{second}", first + second, cast.things),))


def subtract(rng: Random, cast: Cast) -> Problem:
    """Return a problem on taking away."""
    first = rng.randint(12, 80)
    second = rng.randint(2, first - 2)
    question = expand(
        "{n} [bought|picked|collected] {a}. {H} [gave {b} of them to {o}|sold {b} of them]. "
        "How many {t} [are left|does {n} have left]?",
        rng,
        n=cast.name,
        a=counted(first, cast.thing),
        H=cast.he.capitalize(),
        b=second,
        o=cast.other,
        t=cast.things,
    )
    return Problem(question, (Step("There are", f"{first}-{second}", first - second, f"{cast.things} left"),))


def cost(rng: Random, cast: Cast) -> Problem:
    """Return a problem on what several things cost."""
    count, each = rng.randint(2, 12), rng.randint(2, 15)
    question = expand(
        "{n} buys {c}. Each {t} costs ${e}. How much does {n} [pay|spend][ in total|]?",
        rng,
        n=cast.name,
        c=counted(count, cast.thing),
        t=cast.thing,
        e=each,
    )
    return Problem(question, (Step(f"The {cast.things} cost", f"{count}*{each}", count * each, "dollars"),))


def share(rng: Random, cast: Cast) -> Problem:
    """Return a problem on sharing out."""
    friends, each = rng.randint(2, 12), rng.randint(2, 12)
    question = expand(
        "{n} shares {a} {t} equally among {f} friends. How many {t} does each friend get?",
        rng,
        n=cast.name,
        a=friends * each,
        t=cast.things,
        f=friends,
    )
    return Problem(question, (Step("Each friend gets", f"{friends * each}/{friends}", each, cast.things),))


def change(rng: Random, cast: Cast) -> Problem:
    """Return a problem on the change from a payment."""
    count, each = rng.randint(2, 9), rng.randint(2, 9)
    paid = count * each + rng.randint(1, 30)
    question = expand(
        "{n} has ${p}. {H} buys {c} for ${e} each. How [much money|many dollars] does {n} have left?",
        rng,
        n=cast.name,
        p=paid,
        H=cast.he.capitalize(),
        c=counted(count, cast.thing),
        e=each,
    )
    spent = count * each
    return Problem(
        question,
        (
            Step(f"The {cast.things} cost", f"{count}*{each}", spent, "dollars"),
            Step(f"{cast.name} has", f"{paid}-{spent}", paid - spent, "dollars left"),
        ),
    )


def more_than(rng: Random, cast: Cast) -> Problem:
    """Return a problem on a multiple and a sum."""
    first, factor = rng.randint(3, 30), rng.randint(2, 5)
    question = expand(
        "{n} has {a}. {o} has {f} times as many. How many {t} do they have [together|in total|altogether]?",
        rng,
        n=cast.name,
        a=counted(first, cast.thing),
        o=cast.other,
        f=factor,
        t=cast.things,
    )
    return Problem(
        question,
        (
            Step(f"{cast.other} has", f"{factor}*{first}", factor * first, cast.things),
            Step("Together they have", f"{first}+{factor * first}", first + factor * first, cast.things),
        ),
    )


def boxes(rng: Random, cast: Cast) -> Problem:
    """Return a problem on groups and single things."""
    count, each, loose = rng.randint(2, 10), rng.randint(3, 12), rng.randint(1, 15)
    box = pick(rng, ("box", "bag", "basket", "shelf"))
    question = expand(
        "{n} has {c} with {e} {t} in each and {l} more {t} on the table. How many {t} does {n} have?",
        rng,
        n=cast.name,
        c=counted(count, box),
        e=each,
        t=cast.things,
        l=loose,
    )
    return Problem(
        question,
        (
            Step(f"The {plural(box)} hold", f"{count}*{each}", count * each, cast.things),
            Step(f"{cast.name} has", f"{count * each}+{loose}", count * each + loose, cast.things),
        ),
    )


def half(rng: Random, cast: Cast) -> Problem:
    """Return a problem on a half and a rest."""
    first = 2 * rng.randint(4, 40)
    given = rng.randint(1, first // 2 - 1)
    question = expand(
        "{n} had {a}. {H} gave half of them to {o} and {g} to a neighbour. How many {t} does {n} have left?",
        rng,
        n=cast.name,
        a=counted(first, cast.thing),
        H=cast.he.capitalize(),
        o=cast.other,
        g=given,
        t=cast.things,
    )
    return Problem(
        question,
        (
            Step(f"{cast.name} kept", f"{first}/2", first // 2, cast.things),
            Step(f"{cast.name} has", f"{first // 2}-{given}", first // 2 - given, f"{cast.things} left"),
        ),
    )


def days(rng: Random, cast: Cast) -> Problem:
    """Return a problem on two daily amounts over several days."""
    morning, evening, count = rng.randint(2, 15), rng.randint(2, 15), rng.randint(2, 9)
    verb = pick(rng, ("makes", "sells", "paints", "packs"))
    question = expand(
        "[Every day|Each day] {n} {v} {m} in the morning and {e} in the evening. How many {t} is that in {d} days?",
        rng,
        n=cast.name,
        v=verb,
        m=counted(morning, cast.thing),
        e=evening,
        t=cast.things,
        d=count,
    )
    return Problem(
        question,
        (
            Step("One day gives", f"{morning}+{evening}", morning + evening, cast.things),
            Step(f"{count} days give", f"{count}*{morning + evening}", count * (morning + evening), cast.things),
        ),
    )


KINDS: tuple[Callable[[Random, Cast], Problem], ...] = (
    add,
    subtract,
    cost,
    share,
    change,
    more_than,
    boxes,
    half,
    days,
)


def invent_problem(rng: Random) -> Problem:
    """Return one problem of any kind, with its names and things."""
    (name, he), thing = names.first_name(rng), pick(rng, words.OBJECTS)
    other = names.first_name(rng)[0]
    while other == name:
        other = names.first_name(rng)[0]
    return KINDS[rng.randrange(len(KINDS))](rng, Cast(name, he, other, thing, plural(thing)))
