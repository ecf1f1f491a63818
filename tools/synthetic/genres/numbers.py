"""Sums, word problems with worked solutions, prices, times and units."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from synthetic import names, words
from synthetic.genres import genre
from synthetic.grammar import counted, expand, pick, plural


def sum_line(rng: Random) -> str:
    """Return one sum with its result."""
    sign = pick(rng, "++--**/")
    size = pick(rng, (10, 20, 50, 100, 100, 1000))
    first, second = rng.randint(1, size), rng.randint(1, size)
    if sign in "*/":
        first, second = rng.randint(2, 12 if rng.random() < 0.7 else 60), rng.randint(2, 12)
    if sign == "+":
        return f"{first} + {second} = {first + second}"
    if sign == "-":
        return f"{max(first, second)} - {min(first, second)} = {abs(first - second)}"
    if sign == "*":
        return f"{first} {pick(rng, '*x')} {second} = {first * second}"
    return f"{first * second} / {second} = {first}"


@genre("sums", 4)
def sums(rng: Random) -> str:
    """Write a column of sums."""
    rows = [sum_line(rng) for _ in range(rng.randint(5, 14))]
    if rng.random() < 0.4:
        rows = [row.replace(" ", "") for row in rows]
    return pick(rng, ("\n", "\n", "; ", ", ")).join(rows)


Story = tuple[str, str, int]


def gain(rng: Random, who: str, he: str, thing: str) -> Story:
    """Return a problem on getting more, its solution and its result."""
    first, second = rng.randint(2, 90), rng.randint(2, 60)
    question = expand(
        "{w} has {a}. [{o} gives {w} {b} more|{h} [buys|finds|gets] {b} more]. "
        "How many {t} does {w} have [now|in all|altogether]?",
        rng,
        w=who,
        a=counted(first, thing),
        b=second,
        t=plural(thing),
        h=he.capitalize(),
        o=names.first_name(rng)[0],
    )
    total = first + second
    return question, f"{who} has {first} + {second} = {total} {plural(thing)}", total


def loss(rng: Random, who: str, he: str, thing: str) -> Story:
    """Return a problem on giving away."""
    first = rng.randint(10, 99)
    second = rng.randint(2, first - 3)
    question = expand(
        "{w} had {a}. {h} [gave {b} of them to {o}|lost {b} of them|sold {b} of them]. "
        "How many {t} [are left|does {w} have left]?",
        rng,
        w=who,
        a=counted(first, thing),
        b=second,
        t=plural(thing),
        h=he.capitalize(),
        o=names.first_name(rng)[0],
    )
    return question, f"{who} has {first} - {second} = {first - second} {plural(thing)} left", first - second


def groups(rng: Random, who: str, he: str, thing: str) -> Story:
    """Return a problem on equal groups."""
    count, each = rng.randint(2, 12), rng.randint(2, 15)
    box = pick(rng, ("box", "bag", "basket", "shelf", "drawer"))
    question = (
        f"{who} has {counted(count, box)} with {counted(each, thing)} in each. How many {plural(thing)} does {he} have?"
    )
    return question, f"There are {count} * {each} = {count * each} {plural(thing)}", count * each


def shares(rng: Random, who: str, he: str, thing: str) -> Story:
    """Return a problem on sharing out."""
    friends, each = rng.randint(2, 12), rng.randint(2, 15)
    question = f"{who} shares {friends * each} {plural(thing)} among {friends} friends. How many does each friend get?"
    return question, f"Each friend gets {friends * each} / {friends} = {each} {plural(thing)}", each


def price(rng: Random, who: str, he: str, thing: str) -> Story:
    """Return a problem on what things cost."""
    count, cost, sign = rng.randint(2, 12), rng.randint(2, 30), pick(rng, "$$£€")
    question = f"One {thing} costs {sign}{cost}. How much does {who} pay for {count} {plural(thing)}?"
    return question, f"{who} pays {count} * {sign}{cost} = {sign}{count * cost}", count * cost


def week(rng: Random, who: str, he: str, thing: str) -> Story:
    """Return a problem on doing something every day."""
    each, days = rng.randint(2, 20), rng.randint(2, 14)
    verb, done = pick(rng, (("makes", "made"), ("collects", "collected"), ("sells", "sold"), ("paints", "painted")))
    question = f"{who} {verb} {counted(each, thing)} a day. How many {plural(thing)} has {he} {done} after {days} days?"
    return question, f"After {days} days that is {days} * {each} = {days * each} {plural(thing)}", days * each


STORIES: tuple[Callable[[Random, str, str, str], Story], ...] = (gain, loss, groups, shares, price, week)


@genre("word problems", 9)
def word_problems(rng: Random) -> str:
    """Write one to three word problems, each worked out; some with a second step."""
    ask, solve, end = pick(
        rng,
        (
            ("Problem: ", "Solution: ", "Result: "),
            ("", "Worked: ", "So the answer is "),
            ("Q. ", "A. ", "That makes "),
            ("", "", "Total: "),
        ),
    )
    parts = []
    for _ in range(rng.randint(1, 3)):
        (who, he), thing = names.first_name(rng), pick(rng, words.OBJECTS)
        kind = STORIES[rng.randrange(len(STORIES))]
        question, work, result = kind(rng, who, he, thing)
        if kind in (gain, loss, groups) and rng.random() < 0.6:
            factor, other = rng.randint(2, 5), names.first_name(rng)[0]
            head = question.rsplit(". ", 1)[0]
            question = f"{head}. {other} has {factor} times as many {plural(thing)}. How many does {other} have?"
            work, result = (
                f"{work}.\n{other} has {factor} * {result} = {factor * result} {plural(thing)}",
                factor * result,
            )
        parts.append(f"{ask}{question}\n{solve}{work}.\n{end}{result}{pick(rng, ('', '.'))}")
    return "\n\n".join(parts)


@genre("counting", 3)
def counting(rng: Random) -> str:
    """Write series of numbers, years, times and units."""
    start, step, length = rng.randint(0, 9000), pick(rng, (1, 1, 2, 5, 10, 25, 100)), rng.randint(5, 12)
    series = ", ".join(str(start + step * at) for at in range(length))
    hour, minute = rng.randint(0, 23), rng.randint(0, 59)
    sign = pick(rng, "£€$")
    amount = rng.randint(100, 99999)
    rows = [
        f"Count in steps of {step}: {series}.",
        f"It is {hour:02d}:{minute:02d}. In {60 - minute} minutes it is {(hour + 1) % 24:02d}:00.",
        f"{sign}{amount / 100:.2f} is {amount} {'pence' if sign == '£' else 'cents'}.",
        f"{rng.randint(1, 99)}% of the {plural(pick(rng, words.OBJECTS))} were sold for "
        f"{sign}{rng.randint(1, 999)}.{rng.randint(0, 99):02d}.",
        f"{(n := rng.randint(2, 90))} metres are {n * 100} centimetres; "
        f"{(k := rng.randint(2, 40))} kilograms are {k * 1000} grams.",
        f"{(d := rng.randint(2, 30))} weeks have {d * 7} days; "
        f"{(h := rng.randint(2, 20))} hours have {h * 60} minutes.",
        f"Half of {(m := rng.randint(1, 200)) * 2} is {m}. Twice {(t := rng.randint(3, 200))} is {t * 2}.",
        " ".join(str(rng.randint(*ends)) for ends in ((1000, 9999), (1000, 9999), (0, 999), (0, 99), (0, 9))),
    ]
    rng.shuffle(rows)
    return pick(rng, ("\n", " ")).join(rows[: rng.randint(3, 7)])
