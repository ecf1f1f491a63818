"""Carry a run's adapter to other software: merged into the weights, or in another library's adapter format."""

from __future__ import annotations

from peftkit.export.formats import FORMATS, Format, export
from peftkit.export.merged import merge

__all__ = ["FORMATS", "Format", "export", "merge"]
