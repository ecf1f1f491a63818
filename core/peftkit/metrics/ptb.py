"""The tokens that ROUGE-L, CIDEr and the captioning BLEU count: Penn Treebank conventions, lower-cased, no punctuation.

It does what Stanford's PTBTokenizer does with the options of the COCO captioning tools, written anew from what it puts
out: at every position the longest of the kinds of token below wins, the earlier kind where two are equally long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from peftkit.metrics.ptb_kinds import BLANK, DIGIT, KINDS, LETTER, STARTER, WRITTEN

# What the captioning tools drop. Brackets are already written in lower case by then, so they stay.
PUNCTUATION = frozenset(("''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"))
# Most of any text: plain words and commas between blanks, where no other kind of token can be longer.
PLAIN = re.compile(r"(?:[A-Za-z]+(?:-[A-Za-z]+)*,?[ \n]+)+")
FUSED = frozenset(("cannot", "gonna", "gotta", "wanna", "lemme", "gimme"))
OPENING = re.compile(rf"{LETTER}|({DIGIT})")
STARTING = {start: [kind for kind in KINDS if start in kind.starts] for start in "wdm"}
SENTENCE = re.compile(rf"{BLANK}+{STARTER}|\n{DIGIT}")
BLANKS = re.compile(rf"{BLANK}+")


def tokenize_lines(lines: Sequence[str]) -> list[tuple[str, ...]]:
    """Tokenize texts that the official program reads as lines of one file, beyond the ends of which it looks."""
    lines = [line.replace("\n", " ") for line in lines]
    return [tokenize(line, behind(lines, index)) for index, line in enumerate(lines)]


def behind(lines: Sequence[str], index: int) -> str:
    """Return what stands behind a line as far as it matters: before what follows, a full stop may end the sentence."""
    if index + 1 == len(lines):
        return ""
    if not lines[index].rstrip().endswith("."):
        return "\nx"
    following = "\n" + "\n".join(lines[index + 1 : index + 9])
    sentence = SENTENCE.match(following)
    return sentence[0] if sentence else "\nx"


def tokenize_groups(groups: Sequence[Sequence[str]]) -> list[list[tuple[str, ...]]]:
    """Tokenize the references of each input, which the official program reads one after the other."""
    lines = iter(tokenize_lines([line for group in groups for line in group]))
    return [[next(lines) for _ in group] for group in groups]


@lru_cache(maxsize=1 << 16)
def tokenize(text: str, following: str = "\nx") -> tuple[str, ...]:
    """Split `text` into lower-cased tokens without punctuation; `following` is what the program can see behind it."""
    tokens: list[str] = []
    position, end = 0, len(text)
    text += following
    while position < end:
        plain = PLAIN.match(text, position, end + 1)
        if plain:
            words = plain[0].lower().replace(",", "").split()
            if FUSED.isdisjoint(words):
                tokens += words
                position = plain.end()
                continue
        blanks = BLANKS.match(text, position)
        if blanks:
            position = blanks.end()
            continue
        token, position = read(text, position)
        if token and token not in PUNCTUATION:
            tokens.append(token)
    return tuple(tokens)


def read(text: str, position: int) -> tuple[str, int]:
    """Return the token at `position`, as it is written, and where it ends; an empty one for an unknown sign."""
    opening = OPENING.match(text, position)
    start = "m" if opening is None else "d" if opening[1] else "w"
    best, longest, write = None, 0, str
    for kind in STARTING[start]:
        match = kind.pattern.match(text, position)
        if match and match.end() > longest:
            best, longest, write = match, match.end(), kind.write
    if best is None:
        return "", position + 1
    token = best[best.lastindex or 0]
    return (WRITTEN.get(token.lower()) or write(token)).lower(), position + len(token)
