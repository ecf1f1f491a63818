"""The page of models: which methods each family of decoders takes, found by attaching them to tiny models."""

from __future__ import annotations

import re

REASONS = {
    "no biases": r"has no bias ",
    "no attention": r"has no attention",
    "no feed-forward part": r"has no feed-forward part",
    "no norms": r"has no norm",
}
"""Why a method may be refused by a model, each with what the message says; there is no other reason."""


def reason(message: str) -> str:
    """Return the reason of a refusal; AssertionError for one that is none of `REASONS`."""
    found = [name for name, words in REASONS.items() if re.search(words, message)]
    assert found, f"refused: {message}"
    return found[0]
