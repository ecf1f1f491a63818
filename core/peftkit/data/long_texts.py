"""Texts of many megabytes: tokenized in parts, or cut before they are tokenized, with the ids of the whole text.

Both rest on places where a tokenizer splits a text whatever stands on the other side. They are looked for between two
words of ASCII letters, in tokenizers that split by patterns which look ahead by one character at most, and each is
tried in the text around it. Texts of other tokenizers are tokenized whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from peftkit.data import borders, special

if TYPE_CHECKING:
    from peftkit.data.encode import Piece

LONG = 1 << 17
"""Characters from which on a text is taken apart."""
PART = 1 << 16
"""Characters of a part, to the next place where it may end."""
SEARCHED, AROUND = 1 << 14, 256
"""Characters in which a place is looked for, and those on either side of it that it is tried in."""
BETWEEN = re.compile("(?<=[A-Za-z]) (?=[A-Za-z])")
SPLITTING = {"ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
"""Kinds of pre-tokenizers that look at a character and its neighbour."""


def tokenize_long(text: str, tokenizer: Any) -> list[int]:
    """Return the ids of a text without special tokens around it, tokenized in parts where that gives the same."""
    ids: list[int] = []
    numbers: dict[int, int] = {}
    start = 0
    while start < len(text):
        end = len(text) if len(text) - start <= 2 * PART else border(text, start + PART, tokenizer) or len(text)
        part = _ids(text[start:end], tokenizer)
        # One object for each id, as millions would take four times the memory.
        ids += [numbers.setdefault(index, index) for index in part]
        start = end
    return ids


def shorten(pieces: Sequence[Piece], tokenizer: Any, max_length: int | None) -> Sequence[Piece]:
    """Cut out of the first and the last piece what no row of `max_length` tokens can hold; None cuts nothing.

    What is left of the row when prompts are cut on their left and targets on their right is the same.
    """
    if max_length is None or not pieces or max(len(pieces[0].text), len(pieces[-1].text)) <= LONG:
        return pieces
    shortened = list(pieces)
    if len(shortened[0].text) > LONG and not shortened[0].trained:
        shortened[0] = shortened[0]._replace(text=_without_middle(shortened[0].text, tokenizer, max_length))
    if len(shortened[-1].text) > LONG and shortened[-1].trained:
        shortened[-1] = shortened[-1]._replace(text=_begun(shortened[-1].text, tokenizer, max_length))
    return shortened


def border(text: str, at: int, tokenizer: Any) -> int | None:
    """Return the first place from `at` on where the ids before and after do not depend on each other; None if none."""
    if not _splits(tokenizer):
        return None
    for found in BETWEEN.finditer(text, at, at + SEARCHED):
        place = found.start()
        before, after = text[max(0, place - AROUND) : place], text[place : place + AROUND]
        if _ids(before + after, tokenizer) == _ids(before, tokenizer) + _ids(after, tokenizer):
            return place
    return None


def _without_middle(text: str, tokenizer: Any, max_length: int) -> str:
    """Return the beginning of a text, which may hold the beginning-of-sequence token, and its last tokens."""
    begun = border(text, AROUND, tokenizer)
    size = 16 * max_length
    while begun is not None and size < len(text) - LONG:
        end = border(text, len(text) - size, tokenizer)
        if end is None:
            break
        if len(_ids(text[end:], tokenizer)) >= max_length:
            return text[:begun] + text[end:]
        size *= 4
    return text


def _begun(text: str, tokenizer: Any, max_length: int) -> str:
    """Return so much of a text's beginning that it has more than `max_length` tokens."""
    size = 16 * max_length
    while size < len(text) - LONG:
        end = border(text, size, tokenizer)
        if end is None:
            break
        # A target is tokenized behind its prompt, which may take a token of its beginning.
        if len(_ids(text[:end], tokenizer)) > max_length + AROUND:
            return text[:end]
        size *= 4
    return text


def _ids(text: str, tokenizer: Any) -> list[int]:
    return special.tokenized([text], tokenizer)[0]


@lru_cache(maxsize=64)
def _splits(tokenizer: Any) -> bool:
    """Say whether a tokenizer is known to split texts by what stands side by side."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.pre_tokenizer is None:
        return False
    steps = borders.steps(backend.pre_tokenizer, "pretokenizers")
    return all(map(_splits_here, steps)) and borders.normalizes_plainly(backend)


def _splits_here(step: dict[str, Any]) -> bool:
    pattern = step.get("pattern", {}).get("Regex", "")
    return step["type"] in SPLITTING and not step.get("add_prefix_space", False) and "(?<" not in pattern
