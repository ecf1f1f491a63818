"""JSON as its writer means it: of a key that stands twice in one object no value is dropped without a word."""

from __future__ import annotations

import json
from json import decoder, scanner
from typing import Any


class TwiceError(ValueError):
    """A key stands twice in one object."""

    line: int | None = None
    """The line of the text in which the object begins."""
    several = False
    """Whether the text has several lines."""


def loads(text: str | bytes) -> Any:
    """Return the value of a JSON text; TwiceError for a key that stands twice in one object, else as `json.loads`."""
    if not isinstance(text, str):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    if text.startswith("\ufeff"):
        raise json.JSONDecodeError("Unexpected UTF-8 BOM (decode using utf-8-sig)", text, 0)
    try:
        return DECODER.decode(text)
    except TwiceError:
        return _Placing(object_pairs_hook=_apart).decode(text)


def _apart(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise TwiceError(f"the key {twice[:40]!r} stands twice in one object, and only one could be read")
    return held


DECODER = json.JSONDecoder(object_pairs_hook=_apart)
"""Held, as making one takes longer than reading a short line."""


class _Placing(json.JSONDecoder):
    """Reads in Python, which is slower, and tells the line of an object in which a key stands twice."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.parse_object = self._object
        self.scan_once = getattr(scanner, "py_make_scanner")(self)  # noqa: B009 - not in the types

    def _object(self, place: tuple[str, int], *rest: Any) -> Any:
        try:
            return getattr(decoder, "JSONObject")(place, *rest)  # noqa: B009 - not in the types
        except TwiceError as error:
            text, begin = place
            error.line, error.several = error.line or text.count("\n", 0, begin) + 1, "\n" in text.strip()
            raise
