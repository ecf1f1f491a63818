"""What a killed process leaves: a folder is copied before each operation on files that Python does in it."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from peftkit import files

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}


class Watcher:
    """Copies a folder to `places` before each operation on files, where it is not as it was before the last one."""

    folder: Path | None = None

    def __init__(self) -> None:
        self.busy, self.seen = False, set[str]()
        self.into, self.places = Path(), list[Path]()

    def __call__(self, event: str, _: Any) -> None:
        if self.folder is not None and not self.busy and event in OPERATIONS:
            self.look()

    def look(self) -> None:
        """Copy the folder as it is now."""
        assert self.folder is not None
        self.busy = True
        try:
            found = mark(self.folder)
            if found not in self.seen:
                self.seen.add(found)
                self.places.append(self.into / f"{len(self.places):03d}" / "run")
                self.places[-1].parent.mkdir(parents=True)
                if self.folder.exists():
                    shutil.copytree(self.folder, self.places[-1], symlinks=True)
        finally:
            self.busy = False

    @contextmanager
    def watching(self, folder: Path, into: Path) -> Iterator[list[Path]]:
        """Watch a folder while entered; yields the list of the copies."""
        self.folder, self.into, self.places, self.seen = folder, into, [], set()
        try:
            yield self.places
            self.look()
        finally:
            self.folder = None


def mark(folder: Path) -> str:
    """Return a digest of what is in a folder; of what is only swept, half-written files, that it is there counts."""
    state = hashlib.sha256(str(folder.exists()).encode())
    swept = {path for place in (folder, folder / "checkpoints") for path in files.leftovers(place)}
    for path in sorted(folder.rglob("*")):
        if path in swept:
            state.update(path.name.split(".")[1].encode())
        elif swept.isdisjoint(path.parents):
            state.update(repr((str(path), path.read_bytes() if path.is_file() else None)).encode())
    return state.hexdigest()


@cache
def watcher() -> Watcher:
    """Return the one watcher of this process: what is added to its auditing stays there."""
    made = Watcher()
    sys.addaudithook(made)
    return made
