"""A page made of headings, texts, tables and pictures, written as Markdown and as one HTML file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from peftkit import files
from peftkit.report.page import SORT, STYLE, table
from peftkit.report.tables import grid

FORE = "\n.examples td { white-space: normal; text-align: left; vertical-align: top; }\n"


@dataclass(frozen=True)
class Heading:
    """A heading under the title."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows, the others stand to the right."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: bool = False
    """Whether cells hold sentences, which are folded and stand to the left, and not figures."""


@dataclass(frozen=True)
class Picture:
    """A PNG: its file's name without the ending, what it shows, and its bytes."""

    name: str
    shows: str
    content: bytes


Block = Heading | Paragraph | Table | Picture


@dataclass
class Document:
    """What is written."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        """Put blocks at the end."""
        self.blocks += blocks

    def write(self, folder: Path) -> None:
        """Write `report.md` with its pictures, and `report.html`, which holds them, into `folder`."""
        for block in self.blocks:
            if isinstance(block, Picture):
                files.write_bytes(folder / f"{block.name}.png", block.content)
        files.write_text(folder / "report.md", self.markdown())
        files.write_text(folder / "report.html", self.html())

    def markdown(self) -> str:
        """Return the page as Markdown."""
        return "\n\n".join([f"# {self.title}", *map(_markdown, self.blocks)]) + "\n"

    def html(self) -> str:
        """Return the page as HTML that needs no other file."""
        title = escape(self.title)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{title}</title><style>{STYLE}{FORE}</style></head>\n<body>\n<h1>{title}</h1>\n"
            + "\n".join(map(_html, self.blocks))
            + f"\n<script>{SORT}</script></body></html>\n"
        )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Paragraph(text):
            return text
        case Table(heads, rows, prose):
            written = grid(heads, [[" ".join(cell.split()) for cell in row] for row in rows])
            return written.replace("---:", "---") if prose else written
        case Picture(name, shows):
            return f"![{shows}]({name}.png)"


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Table(heads, rows, prose):
            written = table(heads, rows)
            return written.replace("<table>", '<table class="examples">', 1) if prose else written
        case Picture(_, shows, content):
            return f'<img alt="{escape(shows)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
