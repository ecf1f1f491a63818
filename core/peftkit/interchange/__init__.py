"""Adapters that other libraries wrote: found by their files, read as methods of this project, kept as a run."""

from __future__ import annotations

from peftkit.interchange.imported import as_run, import_folder
from peftkit.interchange.published import published_instead
from peftkit.interchange.reader import READERS, FolderReader, ReadAdapter, is_foreign

__all__ = ["READERS", "FolderReader", "ReadAdapter", "as_run", "import_folder", "is_foreign", "published_instead"]
