"""Comparisons and runs as files that people and programs read: Markdown, CSV, pictures, and one HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from peftkit import files
from peftkit.report import compared, evidence, papers, picture, tables
from peftkit.report.document import Document
from peftkit.report.results import Comparison


def write(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.md`, `.csv`, `.png` and `.html` into `folder`, each whole or not at all."""
    tables.document(comparison, picture.draw(comparison)).write(folder, "comparison")
    files.write_text(folder / "comparison.csv", tables.csv_text(comparison))


def report(
    folders: Sequence[Path],
    output: Path,
    *,
    paper: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Document:
    """Write `report.md` and `report.html` on run folders (or a comparison's folder) into `output`; returns the page.

    With `paper` the runs are set beside that table or figure of `configs/papers/`. Raises PeftkitError for a folder
    that holds no run, runs of different data sets without `paper`, and a paper that is not known.
    """
    known = None if paper is None else papers.read(paper)
    runs, bases = evidence.read(folders)
    document = compared.report(runs, bases, on_progress) if known is None else papers.report(known, runs, bases)
    document.write(output)
    return document
