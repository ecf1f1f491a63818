"""Which of a user's own files hold a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftkit.data.records import missing
from peftkit.errors import PeftkitError

SPELLINGS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def split_of(path: Path) -> str:
    """Return the split that a file's name tells; a name that tells none is training data."""
    return next((split for split, spellings in SPELLINGS.items() if path.stem in spellings), "train")


def split_files(path: Path, split: str, suffixes: Sequence[str]) -> list[Path]:
    """Return the files of a split: `path` itself, or in the folder `path` the split's file or folder of files.

    Raises PeftkitError that says what is allowed where the split is not there.
    """
    wanted = " or ".join(f"{split}{suffix}" for suffix in suffixes)
    if path.is_file() or path.is_fifo():
        if path.suffix not in suffixes:
            raise PeftkitError(f"{path} ends in '{path.suffix}'; allowed: {', '.join(suffixes)}.")
        if split_of(path) != split:
            raise PeftkitError(
                f"{path} is one file, and holds the {split_of(path)} split; for the split '{split}' name a folder in "
                f"`dataset.path` that holds train{suffixes[0]} and {wanted}."
            )
        return [path]
    if not path.is_dir():
        raise PeftkitError(
            f"{path} does not exist; name a {' or '.join(suffixes)} file, or a folder that holds {wanted}, "
            "in `dataset.path`."
        )
    for spelling in SPELLINGS[split]:
        for suffix in suffixes:
            if (path / f"{spelling}{suffix}").is_file():
                return [path / f"{spelling}{suffix}"]
        inside = sorted(file for file in (path / spelling).rglob("*") if file.suffix in suffixes and file.is_file())
        if inside:
            return inside
    raise missing(path, f"{wanted} for the split '{split}'")
