"""Lines of text files, one read after the other and decoded when they are asked for."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from peftkit.files import explained, not_utf8

BOM = codecs.BOM_UTF8


class Line(NamedTuple):
    """A line of a UTF-8 text, still to be decoded."""

    path: Path
    number: int
    start: int
    """The byte of the file that it begins with."""
    content: bytes
    """With its line feed."""

    @property
    def blank(self) -> bool:
        """Whether it holds white space alone."""
        if self.content and 32 < self.content[0] < 127:
            return False
        rest = self.content.lstrip()
        return not rest or (not 32 < rest[0] < 127 and not rest.decode(errors="replace").strip())

    @property
    def text(self) -> str:
        """The line with its end; PeftkitError where it is in another encoding."""
        try:
            return self.content.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(self.path, self.number, self.start + error.start) from None


def each_line(path: Path) -> Iterator[Line]:
    """Yield the lines of a UTF-8 text, one read after the other; they end at a line feed, and at no other character."""
    start = 0
    with explained("read", path), path.open("rb") as file:
        for number, content in enumerate(file, 1):
            mark = len(BOM) if number == 1 and content.startswith(BOM) else 0
            yield Line(path, number, start + mark, content[mark:] if mark else content)
            start += len(content)
