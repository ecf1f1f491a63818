"""The tokens that ROUGE-L, CIDEr and the captioning BLEU count: Penn Treebank conventions, lower-cased, no punctuation.

It does what Stanford's PTBTokenizer does with the options of the COCO captioning tools, written anew from what it puts
out: at every position the longest of the kinds of token below wins, the earlier kind where two are equally long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

from peftkit.metrics import UnavailableError, ptb_program
from peftkit.metrics.ptb_kinds import BLANK, DIGIT, FIRM, KINDS, LETTER, NAME, SOFTER, STARTER, TAG, WRITTEN

# What the captioning tools drop. Brackets are already written in lower case by then, so they stay.
PUNCTUATION = frozenset(("''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"))
# Most of any text: plain words and commas between blanks, where no other kind of token can be longer.
PLAIN = re.compile(rf"(?:[A-Za-z]+(?:-[A-Za-z]+)*,?[ \n]{BLANK}*)+")
# Next to them in number: plain words at the end of a sentence, unless they keep its full stop.
LAST = re.compile(r"([A-Za-z]{2,})\.(?=[ \n]+[A-Za-z])")
KEEPS_STOP = re.compile(rf"{FIRM}|{SOFTER}|(?i:pt[ey])\.")
FUSED = frozenset(("cannot", "gonna", "gotta", "wanna", "lemme", "gimme"))
OPENING = re.compile(rf"{LETTER}|({DIGIT})")
STARTING = {start: [kind for kind in KINDS if start in kind.starts] for start in "wdm"}
SENTENCE = re.compile(rf"{BLANK}+{STARTER}|\n{DIGIT}")
LINE_END = re.compile("[\r\x0b\x0c\u2028\u2029]")
UNCLOSED = re.compile(rf"<{NAME} [^<>]*= *(?:'[^']*|\"[^\"]*)$")
# With any other blank an address can begin.
BLANKS = re.compile(rf"[ \t\n]{BLANK}*")


@dataclass
class TokenSource:
    """Where treebank tokens come from, and whether any have."""

    official: bool = False
    used: bool = False

    @property
    def name(self) -> str | None:
        """What a report says of the tokens; None where none were counted."""
        return (ptb_program.NAME if self.official else "peftkit") if self.used else None


_source: ContextVar[TokenSource | None] = ContextVar("source of treebank tokens", default=None)


@contextmanager
def treebank_tokens(*, official: bool) -> Iterator[TokenSource]:
    """Take the treebank tokens of what is scored inside from the official program itself where `official` is true."""
    source = TokenSource(official)
    before = _source.set(source)
    try:
        yield source
    finally:
        _source.reset(before)


def tokenize_lines(lines: Sequence[str]) -> list[tuple[str, ...]]:
    """Tokenize predictions, which the official program reads as lines of one file, looking beyond their ends.

    Raises UnavailableError for a text after which its lines fall out of step.
    """
    return tokenize_file(lines, [f"prediction {number}" for number in range(1, len(lines) + 1)])


def tokenize_groups(groups: Sequence[Sequence[str]]) -> list[list[tuple[str, ...]]]:
    """Tokenize the references of each input, which are lines of another file, one input's after the other's."""
    names = [
        f"reference {number} of input {index}"
        for index, group in enumerate(groups, 1)
        for number in range(1, len(group) + 1)
    ]
    found = iter(tokenize_file([line for group in groups for line in group], names))
    return [[next(found) for _ in group] for group in groups]


def tokenize_file(lines: Sequence[str], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Tokenize the lines of one file; `names` is what an error calls them."""
    # The captioning tools themselves put a space in the place of this end of a line, and of no other.
    lines = [line.replace("\n", " ") for line in lines]
    for index, (line, name) in enumerate(zip(lines, names, strict=True)):
        check(line, lines[index + 1 :] if "<" in line else (), name)
    source = _source.get() or TokenSource()
    source.used = True
    if source.official:
        return [tuple(token for token in line if token not in PUNCTUATION) for line in ptb_program.tokenize(lines)]
    return [tokenize(line, behind(lines, index)) for index, line in enumerate(lines)]


def check(line: str, following: Sequence[str], name: str) -> None:
    """Raise UnavailableError where the official program does not end the line where it ends, or only later."""
    end = LINE_END.search(line)
    if end:
        raise UnavailableError(
            f"{name} has the character U+{ord(end[0]):04X}, which ends a line for the official tokenizer: every "
            "text after it would be scored as another input's; put a space in its place"
        )
    opened = UNCLOSED.search(line) if following else None
    if opened and re.compile(TAG).match("\n".join((line, *following)), opened.start()):
        raise UnavailableError(
            f"{name} opens the tag '{opened[0][:40]}', which a later text closes: the official tokenizer reads all "
            "between as one token; put a space after its '<'"
        )


def behind(lines: Sequence[str], index: int) -> str:
    """Return what stands behind a line as far as it matters: before what follows, a full stop may end the sentence."""
    if index + 1 == len(lines):
        return ""
    if not lines[index].rstrip().endswith("."):
        return "\nx"
    following = "\n" + "\n".join(lines[index + 1 : index + 9])
    sentence = SENTENCE.match(following)
    return sentence[0] if sentence else "\nx"


def separate(tokens: Sequence[str]) -> tuple[str, ...]:
    """Return the words of `tokens`: the n-grams of the captioning tools take a token with blanks for several."""
    return tuple(" ".join(tokens).split())


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
        last = LAST.match(text, position)
        if last and not KEEPS_STOP.match(text, position) and last[1].lower() not in FUSED:
            tokens.append(last[1].lower())
            position = last.end()
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
