"""Text that is not ours made fit to be shown: what would steer a terminal or a page stands there as it is written."""

from __future__ import annotations

import re

STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and line feed, and those that change the direction of what is around them."""


def visible(text: str) -> str:
    """Write characters that steer a terminal as escapes (`\\x1b`, `\\u202e`), half surrogate pairs too."""
    return STEERING.sub(_escape, text).encode("utf-8", "backslashreplace").decode()


def plain_markdown(text: str) -> str:
    """Write a text so that Markdown shows it and neither runs nor loads anything of it."""
    return visible(text).replace("\\", "\\\\").replace("<", "&lt;").replace("[", "\\[").replace("`", "\\`")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
