"""Texts to compare tokenizers on: those in a folder of data sets, and lines drawn from them with changes."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

BETWEEN = re.compile("[\n\r\x0b\x0c\u2028\u2029]")
"""What the official program takes for the end of a line."""
PIECES = (
    "Mr.",
    "St.",
    "J.",
    "U.S.",
    "a.m.",
    "etc.",
    "Inc.",
    "No. 5",
    "ca. 9",
    "Ph.D.",
    "don't",
    "it's",
    "you'll",
    "O'Neil",
    "o'clock",
    "'n'",
    "'em",
    "'tis",
    "'90s",
    "cannot",
    "gonna",
    "The",
    "It",
    "12",
    "1,000",
    "US$5",
    "£5",
    "5%",
    "1/2",
    "1 1/2",
    "555-1234",
    "(555) 123 4567",
    "12-12-2012",
    ":)",
    ";-)",
    "^_^",
    "-_-",
    "...",
    ". . .",
    ".",
    ",",
    ";",
    ":",
    "!",
    "?!",
    "-",
    "--",
    "---",
    "–",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "<",
    "<<",
    ">>",
    "<a>",
    '<b c="d">',
    "&amp;",
    "&lt;",
    "&apos;",
    "&nbsp;",
    "&eacute;",
    "&",
    "####",
    "#tag",
    "@me",
    "a@b.c",
    "www.a.com",
    "http://x.yz/a",
    "foo.com/bar",
    "a.txt",
    "R&D",
    "A+B",
    "and/or",
    "x-ray",
    "U.S.-based",
    "’",
    "‘",
    "'",
    "“",
    "”",
    '"',
    "`",
    "``",
    "**",
    "_",
    "/",
    "\\",
    "=",
    "-5",
    "+5",
    "½",
    "²",
    "€",
    "…",
    "naïve",
    "中文",
    "\xad",
    "\xa0",
    "n't",
    "’ll",
    "'d",
    "l'",
    "y'",
    "pro-",
    "S&P-500",
    "more'n",
    "c'est",
    "Pte. Ltd",
    "plc.",
    "vs.",
    "Jan.",
    "La.",
    "la.",
    "foo",
    "foo.",
    "'s",
)
MARKS = "abcdntlsmoyNOTLSDMI0123459.,;:!?'\"-()[]{}<>/\\&$#@*%_=+^~`’‘“”–—…£€½²é \u00a0\u00ad"


def texts(folder: Path) -> list[str]:
    """Return the distinct texts in the tables, trees and records of a folder, each as one line."""
    found: dict[str, None] = {}
    for path in sorted(folder.rglob("*")):
        for text in READERS.get(path.suffix, nothing)(path):
            found.setdefault(BETWEEN.sub(" ", text).strip())
    return [text for text in found if text]


def nothing(_: Path) -> Iterator[str]:
    return iter(())


def table(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.reader(lines):
            yield from row


def tree(path: Path) -> Iterator[str]:
    yield from (node.text for node in ElementTree.parse(path).iter() if node.text)


def records(path: Path) -> Iterator[str]:
    content = path.read_text(encoding="utf-8")
    for value in content.split("\n") if path.suffix == ".jsonl" else [content]:
        if value.strip():
            yield from strings(json.loads(value))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".csv": table,
    ".xml": tree,
    ".json": records,
    ".jsonl": records,
}


def shuffled(line: str, chance: random.Random) -> str:
    words = line.split()
    chance.shuffle(words)
    return " ".join(words)


def characters(line: str, chance: random.Random) -> str:
    """Replace, drop or put in three characters."""
    found = list(line)
    for _ in range(3):
        place = chance.randrange(len(found) + 1)
        found[place : place + chance.randrange(2)] = chance.choice(["", chance.choice(MARKS)])
    return "".join(found)


def mixed(line: str, chance: random.Random) -> str:
    """Put pieces that are read in special ways between the words, with a space or without."""
    words = line.split()
    for _ in range(4):
        words.insert(chance.randrange(len(words) + 1), chance.choice(PIECES))
    return "".join(word + chance.choice([" ", " ", ""]) for word in words)


def pieces(_: str, chance: random.Random) -> str:
    return "".join(chance.choice(PIECES) + chance.choice([" ", ""]) for _ in range(chance.randrange(1, 14)))


def noise(_: str, chance: random.Random) -> str:
    alphabet = chance.sample(MARKS, chance.choice([4, 12, len(MARKS)]))
    return "".join(chance.choice(alphabet) for _ in range(chance.randrange(1, 25)))


CHANGES: tuple[Callable[[str, random.Random], str], ...] = (
    lambda line, _: line.upper(),
    lambda line, _: line.lower(),
    lambda line, _: line.title(),
    lambda line, _: line.replace(". ", ".").replace(", ", ","),
    lambda line, _: re.sub(r"([.,;:!?])", r" \1", line),
    lambda line, _: f'"{line}"',
    lambda line, _: "“" + line.replace("'", "’") + "”",
    lambda line, _: "".join(line.split()),
    lambda line, _: line.replace("n't", " n't").replace("'s", " 's"),
    lambda line, chance: line[: chance.randrange(len(line) + 1)],
    shuffled,
    characters,
    mixed,
    pieces,
    noise,
)


def draw(lines: list[str], count: int, seed: int) -> list[str]:
    """Return `count` lines, each with one change, every fourth with another one."""
    chance = random.Random(seed)
    drawn = []
    for index in range(count):
        line = CHANGES[index % len(CHANGES)](chance.choice(lines), chance)
        if chance.randrange(4) == 0:
            line = chance.choice(CHANGES)(line, chance)
        drawn.append(BETWEEN.sub(" ", line).strip())
    return drawn
