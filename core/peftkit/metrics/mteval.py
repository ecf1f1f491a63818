"""The tokens that BLEU and NIST count: the default tokenization of NIST's mteval-v13a."""

from __future__ import annotations

import re
from functools import lru_cache

ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
# Every ASCII sign but the apostrophe, the full stop, the comma and the hyphen.
SIGNS = re.compile(r"([!-&(-+/:-@\[-`{-~])")
POINT_AFTER_WORD = re.compile(r"([^0-9])([.,])")
POINT_BEFORE_WORD = re.compile(r"([.,])([^0-9])")
HYPHEN_AFTER_DIGIT = re.compile(r"([0-9])-")


@lru_cache(maxsize=1 << 16)
def tokenize(text: str) -> tuple[str, ...]:
    """Split `text` as mteval-v13a does: only A to Z lower-cased, ASCII signs apart, the apostrophe kept inside words.

    A full stop or comma stays between two digits; a hyphen is split off only after a digit.
    """
    text = text.replace("<skipped>", "").replace("-\n", "")
    for entity, character in ENTITIES:
        text = text.replace(entity, character)
    text = SIGNS.sub(r" \1 ", f" {text.translate(LOWER)} ")
    text = POINT_AFTER_WORD.sub(r"\1 \2 ", text)
    text = POINT_BEFORE_WORD.sub(r" \1 \2", text)
    return tuple(HYPHEN_AFTER_DIGIT.sub(r"\1 - ", text).split())
