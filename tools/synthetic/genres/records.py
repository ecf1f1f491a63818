"""Records of an invented subject in many layouts, restated in prose: where copying names is learnt."""

from __future__ import annotations

import json
from random import Random

from synthetic.facts import Facts, any_facts, describe
from synthetic.genres import genre
from synthetic.grammar import capital, pick, possessive

MARKERS = (
    "In words: ",
    "Text: ",
    "Description: ",
    "Summary: ",
    "In short: ",
    "As prose:\n",
    "Written out:\n",
    "This means: ",
    "=> ",
    "Sentence: ",
)
ARROWS = (" -> ", " --- ", " => ", " : ", " ~ ", " > ", "; ", " / ")


def pairs(facts: Facts, rng: Random) -> list[tuple[str, str]]:
    """Return label and value of every fact, with one label a property."""
    return [(pick(rng, prop.labels), value) for prop, value in facts.of]


def lines(facts: Facts, rng: Random) -> str:
    """Lay the facts out as one `label: value` a line."""
    sign = pick(rng, (": ", ": ", " = ", " - ", ":\t", " is "))
    style = pick(rng, (str, str, capital, str.upper))
    rows = [("name", facts.name), *pairs(facts, rng)]
    if rng.random() < 0.3:
        rows.insert(1, ("type", facts.kind))
    bullet = pick(rng, ("", "", "- ", "* "))
    return "\n".join(f"{bullet}{style(label)}{sign}{value}" for label, value in rows) + "\n"


def inline(facts: Facts, rng: Random) -> str:
    """Lay the facts out in one line with round brackets."""
    inner = pick(rng, ("; ", ", ")).join(f"{label}: {value}" for label, value in pairs(facts, rng))
    return f"{pick(rng, ('Facts: ', 'About: ', 'Notes on ', 'Data: ', 'Card: '))}{facts.name} ({inner})\n"


def arrows(facts: Facts, rng: Random) -> str:
    """Lay the facts out as subject, relation and value with arrows between."""
    sign = pick(rng, ARROWS)
    rows = [sign.join((facts.name, label, value)) for label, value in pairs(facts, rng)]
    return pick(rng, ("\n", "\n", " . ")).join(rows) + "\n"


def marked_up(facts: Facts, rng: Random) -> str:
    """Lay the facts out as JSON or as elements of mark-up."""
    rows = {"name": facts.name, **{label.replace(" ", "_"): value for label, value in pairs(facts, rng)}}
    if rng.random() < 0.5:
        return json.dumps(rows, ensure_ascii=False) + "\n"
    return "".join(f"<{label}>{value}</{label}>" for label, value in rows.items()) + "\n"


LAYOUTS = (lines, lines, inline, arrows, arrows, marked_up)


@genre("record", 22)
def record(rng: Random) -> str:
    """Write one or two records, each restated in prose behind a marker."""
    layout, marker = pick(rng, LAYOUTS), pick(rng, MARKERS)
    count = 1 if rng.random() < 0.5 else 2
    parts = []
    for _ in range(count):
        facts = any_facts(rng, 2, 7 if count == 1 else 5)
        parts.append(f"{layout(facts, rng)}{marker}{describe(facts, rng)}")
    return "\n\n".join(parts)


@genre("prose first", 4)
def prose_first(rng: Random) -> str:
    """Write prose, then its facts as a record."""
    facts = any_facts(rng, 3, 7)
    head = pick(rng, ("Facts:\n", "Record:\n", "What we know:\n", "The same as a list:\n"))
    return f"{describe(facts, rng)}\n\n{head}{pick(rng, (lines, arrows))(facts, rng)}".strip()


@genre("article", 8)
def article(rng: Random) -> str:
    """Write an entry of an encyclopaedia on one or two subjects."""
    first = any_facts(rng, 4, 8)
    text = describe(first, rng)
    head = f"{first.name}\n\n" if rng.random() < 0.5 else ""
    if rng.random() < 0.5:
        text += f"\n\n{describe(any_facts(rng, 3, 6), rng)}"
    return head + text


@genre("restatement", 4)
def restatement(rng: Random) -> str:
    """Say the same facts two or three times in other words."""
    facts = any_facts(rng, 2, 4)
    link = pick(rng, ("\nIn other words: ", "\nOr: ", "\nAgain: ", "\nPut differently: ", "\n= "))
    return link.join(describe(facts, rng) for _ in range(rng.randint(2, 3)))


@genre("questions", 7)
def questions(rng: Random) -> str:
    """Write prose about a subject, then questions and answers on it."""
    asked: list = []
    while not asked:
        facts = any_facts(rng, 3, 7)
        asked = [(prop, value) for prop, value in facts.of if prop.question]
    rng.shuffle(asked)
    ask, answer = pick(rng, (("Question: ", "Answer: "), ("? ", "- "), ("Asked: ", "Said: "), ("", "")))
    rows = []
    for prop, value in asked:
        reply = value if rng.random() < 0.7 else f"{capital(value)}."
        rows.append(f"{ask}{prop.question.replace('{s}', facts.name)}\n{answer}{reply}")
    text = describe(facts, rng) if rng.random() < 0.7 else lines(facts, rng).strip()
    return f"{text}\n\n" + "\n".join(rows)


@genre("listing", 9)
def listing(rng: Random) -> str:
    """Write records of several subjects of one kind, one a line, and nothing else."""
    facts = any_facts(rng, 2, 4)
    labels = [pick(rng, prop.labels) for prop, _ in facts.of]
    opening, closing, joint = pick(
        rng, (("(", ")", ", "), ("{", "}", ", "), ("=", "", "; "), (": ", "", ", "), ("<", ">", ", "))
    )
    rows = []
    for _ in range(rng.randint(3, 7)):
        named = facts.topic.name(rng)
        name = named[0] if isinstance(named, tuple) else named
        values = [name, *(prop.value(rng) for prop, _ in facts.of)]
        cells = [f"{label}{opening}{value}{closing}" for label, value in zip(["name", *labels], values, strict=True)]
        rows.append(joint.join(cells))
    return "\n".join(rows)


@genre("table", 4)
def table(rng: Random) -> str:
    """Write a table with a header and, at times, one row of it in prose."""
    facts = any_facts(rng, 2, 4)
    sign = pick(rng, (",", "\t", ";", ", "))
    head = ["name", *(pick(rng, prop.labels) for prop, _ in facts.of)]
    rows: list[list[str]] = [[facts.name, *(value for _, value in facts.of)]]
    for _ in range(rng.randint(2, 5)):
        named = facts.topic.name(rng)
        name = str(named[0] if isinstance(named, tuple) else named)
        rows.append([name, *(str(prop.value(rng)) for prop, _ in facts.of)])
    rng.shuffle(rows)
    text = "\n".join(sign.join(map(str, row)) for row in [head, *rows])
    return f"{text}\n\nOne row: {describe(facts, rng)}" if rng.random() < 0.4 else text


@genre("echo", 4)
def echo(rng: Random) -> str:
    """Repeat, reorder and pick out names of a list."""
    named = [any_facts(rng, 1, 1).name for _ in range(rng.randint(3, 6))]
    row = ", ".join(named)
    order = ("first", "second", "third", "fourth", "fifth", "sixth")
    rows = [f"Names: {row}."]
    for at in rng.sample(range(len(named)), rng.randint(1, len(named))):
        rows.append(f"The {order[at]} name is {named[at]}.")
    if rng.random() < 0.5:
        rows.append(f"Backwards: {', '.join(reversed(named))}.")
    if rng.random() < 0.3:
        rows.append(f"Again: {row}.")
    if rng.random() < 0.3:
        rows.append(f"{capital(possessive(named[0]))} neighbour in the list is {named[1]}.")
    return "\n".join(rows)
