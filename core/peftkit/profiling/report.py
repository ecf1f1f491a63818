"""The files of a profile: its figures and the trace, which chrome://tracing, Perfetto and other viewers open."""

from __future__ import annotations

from pathlib import Path

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.profiling.measure import Profile

FIGURES, TRACE = "profile.json", "trace.json"
FILES = (FIGURES, "flame.html", TRACE)
"""What may be there of an earlier profile; profiles of earlier versions had a flame chart."""


def check(folder: Path) -> None:
    """Refuse a folder that holds something else than an earlier profile: PeftkitError."""
    if folder.exists() and not folder.is_dir():
        raise PeftkitError(f"{folder} is a file, and a profile needs a folder: name another with --output.")
    others = sorted(item.name for item in folder.iterdir() if item.name not in FILES) if folder.is_dir() else []
    if others:
        raise PeftkitError(
            f"the folder {folder} holds {', '.join(others[:5])}, which is no part of a profile: name another folder "
            "with --output. Nothing in it was touched."
        )


def write(profile: Profile, folder: Path) -> None:
    """Write the folder of a profile whole, in the place of an earlier one."""
    check(folder)
    with files.new_folder(files.followed(folder), replace=True) as temporary:
        files.write_json(temporary / FIGURES, profile.as_dict())
        if profile.recorded is not None:
            profile.recorded.export_chrome_trace(str(temporary / TRACE))
