"""Models that turn every position of a text otherwise once the text is long (LongRoPE, arXiv:2402.13753)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class RopeScale(Enum):
    """How the positions of a text are turned while it is answered."""

    SHORT = "short"
    LONG = "long"
    BOTH = "both"
    """First as a short text's, then as a long one's: no key that is kept is right afterwards."""


def scale_of(prompt: int, new: int, beyond: int | None) -> RopeScale:
    """Return the scale of a prompt of so many tokens that `new` more may follow; `beyond` is where long texts begin."""
    if beyond is None or prompt + new - 1 <= beyond:
        return RopeScale.SHORT
    return RopeScale.LONG if prompt > beyond else RopeScale.BOTH


def short_length(config: Any) -> int | None:
    """Return the tokens of the longest text that is short, None where there is one scale for all.

    transformers takes the scale of the longest row of a batch for all of them.
    """
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    several = [rope, *(value for value in rope.values() if isinstance(value, Mapping))]
    lengths = [each["original_max_position_embeddings"] for each in several if each.get("rope_type") == "longrope"]
    return min(lengths, default=None)
