"""How much a chat template may take and make, and how large a value will be before it is made."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from peftkit.errors import PeftkitError

SECONDS = 5.0
"""Processor time of one rendering; an ordinary one takes a ten-thousandth of it."""
FREE, ALL_SECONDS = 0.02, 20.0
"""Of the time of every rendering of a template, what is beyond `FREE` may come to so much in a process."""
SIZE, TIMES = 1 << 26, 64
"""Characters and items that one rendering may make: so many, and so many times those that it is given."""
ITEM = 64
"""What an item of a list counts as, in characters."""
NUMBER = 100_000
"""The largest width of anything that is padded, indented or formatted."""
PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes", "indent", "wordwrap", "batch", "slice")
PADDING += ("round", "tojson", "xmlattr", "urlize")
"""Methods and filters that make what is as large as their text times their other values."""


class Unbounded(PeftkitError):  # noqa: N818
    """A rendering that took more time or made more than any conversation needs."""


class Budget:
    """What is left to one rendering."""

    def __init__(self, given: int):
        self.most = self.left = SIZE + TIMES * given
        self.began = time.thread_time()

    @property
    def seconds(self) -> float:
        """The processor time that this thread has spent on it."""
        return time.thread_time() - self.began

    def step(self) -> None:
        """Count a step."""
        if self.seconds > SECONDS:
            raise Unbounded(f"it takes more than {SECONDS:g} s")

    def spend(self, size: int) -> None:
        """Count what is made."""
        self.left -= size
        if self.left < 0:
            raise Unbounded(f"it makes more than {self.most >> 20:,} million characters of one conversation")
        self.step()

    def check(self, size: int) -> None:
        """Refuse to make what is larger than all that is left."""
        if size > self.left:
            self.spend(size)


def whole(value: Any, most: int = 1 << 62) -> int:
    """Return the size of a value with all that it holds, or more than `most`."""
    size, held = 0, [value]
    while held and size <= most:
        item = held.pop()
        if isinstance(item, (str, bytes)):
            size += len(item)
        elif isinstance(item, (list, tuple, dict, set, frozenset)):
            size += ITEM * len(item)
            if size <= most:
                held += [*item, *item.values()] if isinstance(item, dict) else item
        elif isinstance(item, int):
            size += item.bit_length() >> 3
    return size


def multiplied(*values: Any) -> int:
    """Return about how large the product of numbers, or of a sequence and a number, is."""
    numbers = [value for value in values if isinstance(value, int)]
    if len(numbers) == len(values):
        return sum(number.bit_length() for number in numbers)
    size = 1
    for value in values:
        size *= max(0, value) if isinstance(value, int) else max(1, whole(value))
    return size


def padded(*values: Any) -> int:
    """Return the most that padding, cutting or indenting makes of a text; wide ones are refused."""
    if any(isinstance(value, int) and abs(value) > NUMBER for value in values):
        raise Unbounded(f"it asks for something more than {NUMBER:,} wide")
    size = 1
    for value in values:
        size *= max(1, abs(value) if isinstance(value, int) else whole(value))
    return size


def replaced(text: Any, old: Any = "", new: Any = "", *_: Any) -> int:
    """Return the most that replacing makes of a text."""
    places = whole(text) // max(1, whole(old)) + 1
    return whole(text) + places * whole(new)


def interleaved(items: Any, between: Any = "", *_: Any) -> int:
    """Return the size of items with a text between them."""
    return whole(items) + len(items) * whole(between) if hasattr(items, "__len__") else 0


def formatted(text: Any, *values: Any) -> int:
    """Return the most that a format makes of values; a width may stand in the format or among the values."""
    texts = [text] if isinstance(text, str) else []
    if texts and re.search(r"\*|\{[^{}]*\{", text):
        padded(*(number for value in values for number in _numbers(value)))
        texts += [value for value in values if isinstance(value, str)]
    widths = [digits for one in texts for digits in re.findall(r"\d+", one)]
    if any(len(digits) > len(str(NUMBER)) for digits in widths):
        raise Unbounded(f"it asks for something more than {NUMBER:,} wide")
    fields = sum(one.count("%") + one.count("{") for one in texts)
    return whole(text) + fields * (max(map(int, widths), default=0) + whole(list(values)))


def _numbers(value: Any) -> list[int]:
    items = value if isinstance(value, (list, tuple)) else value.values() if isinstance(value, dict) else [value]
    return [item for item in items if isinstance(item, int)]


SIZES: dict[str, Callable[..., int]] = {
    **dict.fromkeys(PADDING, padded),
    "replace": replaced,
    "translate": multiplied,
    "join": interleaved,
    "format": formatted,
    "format_map": formatted,
}
"""How large what a method or a filter makes may be, by its name."""
