"""An encoded row as a person reads it: the text of each token, and whether the loss falls on it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from peftkit.data.encode import IGNORED, Encoded
from peftkit.keys import plain

BROKEN = "\ufffd"
"""What a tokenizer writes for bytes that are no whole character."""


class TokenPiece(NamedTuple):
    """The text of a token, or of the few that make one character."""

    text: str
    trained: bool
    tokens: int = 1
    """How many tokens it is."""


def token_pieces(row: Encoded, tokenizer: Any, soft: Sequence[int] = ()) -> list[TokenPiece]:
    """Decode a row token by token; the tokens of one character stay together.

    `soft` are the ids of a soft prompt, which have no text: they stand as `[soft prompt 1]` and so on. The text of a
    token is what it adds to that of the piece before, as some tokenizers write a space only between two tokens.
    """
    names = {index: f"[soft prompt {number}]" for number, index in enumerate(soft, 1)}
    ids = plain(row.ids)
    kinds = [(label != IGNORED, index in names) for index, label in zip(ids, row.labels, strict=True)]
    borders = {end for end, (kind, following) in enumerate(pairwise(kinds), 1) if kind != following} | {len(kinds)}
    pieces: list[TokenPiece] = []
    context = begin = 0
    for end, (index, (trained, _)) in enumerate(zip(ids, kinds, strict=True), 1):
        if index in names:
            pieces.append(TokenPiece(names[index], trained))
            context = begin = end
            continue
        before, after = (_text(ids[context:at], tokenizer) for at in (begin, end))
        if not after.endswith(BROKEN) or end in borders:
            pieces.append(TokenPiece(after[len(before) :], trained, end - begin))
            context, begin = begin, end
    return pieces


def _text(ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
