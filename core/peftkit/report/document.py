"""A page made of headings, texts, tables and pictures, written as Markdown and as one HTML file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape as escape_html
from pathlib import Path

from peftkit import files
from peftkit.visible import plain_markdown, visible

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
table { font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #e4e7eb; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { cursor: pointer; border-bottom: 2px solid #1f2933; }
th:hover { background: #f1f5f9; }
dt { float: left; clear: left; width: 9rem; color: #52606d; }
img { max-width: 100%; }
.examples td { white-space: normal; text-align: left; vertical-align: top; }
"""
SORT = """
for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.dataset.down = head.dataset.down === "1" ? "0" : "1";
  const value = row => row.cells[column].textContent.replaceAll(",", "");
  const sign = down === "1" ? -1 : 1;
  const order = (a, b) => {
    const [x, y] = [parseFloat(value(a)), parseFloat(value(b))];
    return sign * (isNaN(x) || isNaN(y) ? value(a).localeCompare(value(b)) : x - y);
  };
  body.append(...[...body.rows].sort(order));
};
"""


@dataclass(frozen=True)
class Heading:
    """A heading under the title."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; `hint` is added where tables sort at a click."""

    text: str
    hint: str = ""


@dataclass(frozen=True)
class Facts:
    """Values by name."""

    facts: Mapping[str, str]


@dataclass(frozen=True)
class Points:
    """A list of texts."""

    texts: Sequence[str]


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


Block = Heading | Paragraph | Facts | Points | Table | Picture


@dataclass
class Document:
    """What is written."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        """Put blocks at the end."""
        self.blocks += blocks

    def write(self, folder: Path, name: str = "report") -> None:
        """Write `<name>.md` with its pictures, and `<name>.html`, which holds them, into `folder`."""
        for block in self.blocks:
            if isinstance(block, Picture):
                files.write_bytes(folder / f"{block.name}.png", block.content)
        files.write_text(folder / f"{name}.md", self.markdown())
        files.write_text(folder / f"{name}.html", self.html())

    def markdown(self) -> str:
        """Return the page as Markdown."""
        return "\n\n".join([f"# {plain_markdown(self.title)}", *map(_markdown, self.blocks)]) + "\n"

    def html(self) -> str:
        """Return the page as HTML that needs no other file."""
        title = escape(self.title)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n"
            + "\n".join(map(_html, self.blocks))
            + f"\n<script>{SORT}</script></body></html>\n"
        )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {plain_markdown(text)}"
        case Paragraph(text):
            return plain_markdown(text)
        case Facts(facts):
            return "\n".join(f"- {plain_markdown(name)}: {plain_markdown(value)}" for name, value in facts.items())
        case Points(texts):
            return "\n".join(f"- {plain_markdown(text)}" for text in texts)
        case Table(heads, rows, prose):
            written = grid(heads, [[" ".join(cell.split()) for cell in row] for row in rows])
            return written.replace("---:", "---") if prose else written
        case Picture(name, shows):
            return f"![{plain_markdown(shows)}]({name}.png)"


def escape(text: str) -> str:
    """Write a text as HTML that shows it."""
    return escape_html(visible(text))


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Paragraph(text, hint):
            return f"<p>{escape(text)}{hint and f' {escape(hint)}'}</p>"
        case Facts(facts):
            pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
            return f"<dl>{pairs}</dl>"
        case Points(texts):
            return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"
        case Table(heads, rows, prose):
            written = _table(heads, rows)
            return written.replace("<table>", '<table class="examples">', 1) if prose else written
        case Picture(_, shows, content):
            return f'<img alt="{escape(shows)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table as HTML; a click on a head sorts it."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table as Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(
        "| " + " | ".join(plain_markdown(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
