"""A comparison as files that people and programs read: Markdown, CSV, a picture, and one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peftkit import files

if TYPE_CHECKING:
    from peftkit.comparison import Comparison


def write(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.md`, `.csv`, `.png` and `.html` into `folder`, each whole or not at all."""
    from peftkit.report import page, picture, tables

    drawn = picture.draw(comparison)
    files.write_text(folder / "comparison.md", tables.markdown(comparison))
    files.write_text(folder / "comparison.csv", tables.csv_text(comparison))
    files.write_bytes(folder / "comparison.png", drawn)
    files.write_text(folder / "comparison.html", page.html(comparison, drawn))
