"""A small phrase grammar: alternatives, slots, agreement of a/an, plurals and lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import TypeVar

Item = TypeVar("Item")

PIECES = re.compile(r"[\[\]|]|\{\w+\}|[^\[\]|{}]+")
ARTICLE = re.compile(r"\b([Aa])\(n\) (\W*)(\w+)")
SOUNDS_LIKE_A_CONSONANT = re.compile(r"(?i)(one|once|uni(?!n)|us[ea]|eu|u[bkt][aeio])")
SOUNDS_LIKE_A_VOWEL = re.compile(r"(?i)([aeiouàáâåèéêíóôöúü]|hour|honest|heir|8|11\b|18\b|11,|18,)")
IRREGULAR = {
    "child": "children",
    "person": "people",
    "man": "men",
    "woman": "women",
    "foot": "feet",
    "tooth": "teeth",
    "mouse": "mice",
    "goose": "geese",
    "sheep": "sheep",
    "fish": "fish",
    "leaf": "leaves",
    "loaf": "loaves",
    "knife": "knives",
    "shelf": "shelves",
    "scarf": "scarves",
    "wolf": "wolves",
}


class Slot(str):
    """The name of a value to be filled in."""


class Choice(tuple):
    """The alternatives of a choice; each is a sequence of literals, slots and choices."""


@lru_cache(maxsize=8192)
def parse(template: str) -> tuple[str | Choice, ...]:
    """Return the literals, slots and choices of a template such as `{name} [is|was] [|really ]good`."""
    stack: list[list[list]] = [[[]]]
    for piece in PIECES.findall(template):
        if piece == "[":
            stack.append([[]])
        elif piece == "|":
            stack[-1].append([])
        elif piece == "]":
            alternatives = Choice(tuple(alternative) for alternative in stack.pop())
            stack[-1][-1].append(alternatives)
        else:
            stack[-1][-1].append(Slot(piece[1:-1]) if piece.startswith("{") else piece)
    if len(stack) != 1 or len(stack[0]) != 1:
        raise ValueError(f"unbalanced brackets in the template {template!r}")
    return tuple(stack[0][0])


def _render(nodes: Sequence, rng: Random, values: dict, out: list[str]) -> None:
    for node in nodes:
        if isinstance(node, Choice):
            _render(node[int(rng.random() * len(node))], rng, values, out)
        elif isinstance(node, Slot):
            out.append(str(values[node]))
        else:
            out.append(node)


def expand(template: str, rng: Random, **values: object) -> str:
    """Fill the slots and choose the alternatives; `a(n)` becomes `a` or `an` by the word that follows."""
    out: list[str] = []
    _render(parse(template), rng, values, out)
    text = "".join(out)
    return agree(text) if "a(n)" in text or "A(n)" in text else text


def agree(text: str) -> str:
    """Replace every `a(n)` by the article that the next word asks for."""
    return ARTICLE.sub(lambda match: f"{match[1]}{'n' if takes_an(match[3]) else ''} {match[2]}{match[3]}", text)


def takes_an(word: str) -> bool:
    """Tell whether `word` begins with the sound of a vowel."""
    return bool(SOUNDS_LIKE_A_VOWEL.match(word)) and not SOUNDS_LIKE_A_CONSONANT.match(word)


def pick(rng: Random, options: Sequence[Item]) -> Item:
    """Choose one of `options`; each is as likely as any other."""
    return options[int(rng.random() * len(options))]


def say(rng: Random, options: Sequence[str], **values: object) -> str:
    """Expand one of the templates in `options`."""
    return expand(pick(rng, options), rng, **values)


def capital(text: str) -> str:
    """Write the first letter as a capital."""
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """Begin with a capital and end with a full stop where there is no other end."""
    text = capital(text.strip())
    return text if text.endswith((".", "!", "?", '"')) else text + "."


def enumerate_words(words: Sequence[str], last: str = "and") -> str:
    """Join words as in `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def plural(noun: str, count: int = 2) -> str:
    """Return the form of `noun` for `count` things."""
    if count == 1:
        return noun
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith(("s", "x", "z", "ch", "sh")) or noun in {"potato", "tomato", "mango", "hero"}:
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def counted(count: int, noun: str) -> str:
    """Return the number with its noun, as in `3 boxes`."""
    return f"{count} {plural(noun, count)}"


def possessive(name: str) -> str:
    """Return the possessive, as in `Mara's` and `the Kings'`."""
    return name + ("'" if name.endswith("s") else "'s")
