"""Places where a tokenizer splits a text whatever stands on the other side, so that both sides can be tokenized alone.

They are told from the kinds of a tokenizer's steps: a line feed behind a printable ASCII character, and an ASCII letter
or digit after it. Of a tokenizer with a step that is not known none is told.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

NORMALIZING = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
"""Kinds of normalizers that leave the border between an ASCII letter and white space as it is."""
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = (
    # Llama 3's and GPT-4's, Qwen 2's, Qwen 3.5's.
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{BLANKS}",
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{BLANKS}",
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{BLANKS}",
)
"""Patterns of words that match every character, no letter or digit together with a line feed before it, and nothing by
what stands before; a line feed behind a visible character ends a match whatever follows, or white space does."""


def steps(whole: Any, key: str) -> list[dict[str, Any]]:
    """Describe the steps of a normalizer or a pre-tokenizer, which may be several under `key`."""
    described = json.loads(whole.__getstate__())
    return described[key] if described["type"] == "Sequence" else [described]


def normalizes_plainly(backend: Any) -> bool:
    """Say whether what a tokenizer changes in a text leaves borders in plain ASCII as they are."""
    normalizers = [] if backend.normalizer is None else steps(backend.normalizer, "normalizers")
    return {step["type"] for step in normalizers} <= NORMALIZING


def between(before: str, after: str) -> bool:
    """Say whether a text that goes on with another is split there by every tokenizer that is `known`."""
    return before[-1:] == "\n" and "!" <= before[-2:-1] <= "~" and after[:1].isascii() and after[:1].isalnum()


def known(tokenizer: Any) -> bool:
    """Say whether at a border the ids of both texts together are those of each alone, one after the other."""
    return getattr(tokenizer, "backend_tokenizer", None) is not None and _known(tokenizer, len(tokenizer))


@lru_cache(maxsize=64)
def _known(tokenizer: Any, size: int) -> bool:
    """The answer for a tokenizer of so many tokens: what is added may change it."""
    backend, added = tokenizer.backend_tokenizer, tokenizer.added_tokens_decoder.values()
    # What an added token takes in, or heeds, may stand on both sides.
    if any(token.lstrip or token.single_word or "\n" in token.content for token in added):
        return False
    split = [] if backend.pre_tokenizer is None else steps(backend.pre_tokenizer, "pretokenizers")
    # In bytes, which the last step makes, a line feed is a letter.
    in_bytes = [step["type"] == "ByteLevel" for step in split]
    return (
        normalizes_plainly(backend)
        and all(map(_keeps, split))
        and any(map(_words, split))
        and in_bytes == [False] * (len(split) - 1) + [True]
    )


def _words(step: dict[str, Any]) -> bool:
    """Say whether a step splits all of a text into words."""
    if step["type"] == "ByteLevel":
        return step["use_regex"]
    isolated = step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]
    return isolated and step["pattern"].get("Regex") in WORDS


def _keeps(step: dict[str, Any]) -> bool:
    """Say whether a step joins nothing over a border, and goes by what stands after a place alone."""
    return not step["add_prefix_space"] if step["type"] == "ByteLevel" else step["type"] == "Digits" or _words(step)
