"""Where output goes: one rich console, plain and unwrapped when it is no terminal."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from peftkit.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 200
"""Columns of output that no terminal shows, so that tables are not folded to rich's default of 80."""


def console() -> Console:
    """Return the console of standard output."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, highlight=False, soft_wrap=False)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """Print a table under a title; columns of numbers stand to the right. Cells are shown as they are, brackets too."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, head in enumerate(heads):
        numeric = all(isinstance(row[position], (int, float)) or row[position] == "" for row in rows) and bool(rows)
        grid.add_column(Text(head), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(f"{cell:.4f}" if isinstance(cell, float) else visible(str(cell))) for cell in row))
    if title:
        say(title + "\n")
    console().print(grid)


def print_json(value: Any) -> None:
    """Print `value` as JSON, for programs to read."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_scores(scores: Mapping[str, float], unavailable: Mapping[str, str], title: str | None = None) -> None:
    """Print a table of the scores by name, a column for each part of the set, and the reasons for missing ones."""
    whole = {name: score for name, score in scores.items() if "/" not in name}
    parts = list(dict.fromkeys(name.partition("/")[0] for name in scores if "/" in name))
    rows = [(name, score, *(scores.get(f"{part}/{name}", "") for part in parts)) for name, score in whole.items()]
    table(("metric", "all" if parts else "score", *parts), rows, title)
    print_unavailable(unavailable)


def print_unavailable(reasons: Mapping[str, str]) -> None:
    """Print a line for each metric that could not be computed."""
    for name, reason in reasons.items():
        say(f"{name}: not available: {reason}")


def say(text: str) -> None:
    """Print a line, what steers a terminal as escapes."""
    console().print(visible(text), markup=False, soft_wrap=True)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar on stderr while inside; yields what takes (done, all), or None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """Show on stderr what is being done while inside; yields what takes it in a few words."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading the recipe, the model and the data …") as status:
        yield lambda text: status.update(f"{visible(text)} …")


def tell_warnings() -> None:
    """Print what the core logs as a warning, on whatever stderr is at that moment."""

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print(f"peft: note: {visible(record.getMessage())}", file=sys.stderr)

    logger = logging.getLogger("peftkit")
    logger.handlers[:] = [Notice(logging.WARNING)]
    logger.propagate = False
