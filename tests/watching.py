"""Operations on files that Python does in a folder: it is copied before each, or one of them is refused."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from peftkit import files

WRITING = {"open", "os.mkdir", "os.rename"}
"""What takes room on a disk."""
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}


class Watcher:
    """Copies a folder to `places` before each operation on files, where it is not as it was before the last one.

    Or it counts the operations within the folder that take room, and refuses one of them.
    """

    folder: Path | None = None
    refused: int | None = None
    """Which operation the disk has no room for."""

    def __init__(self) -> None:
        self.busy, self.seen = False, set[str]()
        self.into, self.places, self.count = Path(), list[Path](), 0

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if self.folder is None or self.busy or event not in OPERATIONS:
            return
        if self.refused is None:
            self.look()
        elif self.takes_room(event, *given):
            self.count += 1
            if self.count == self.refused:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(given[0]))

    def takes_room(self, event: str, path: Any, *given: Any) -> bool:
        """Say whether an operation on the folder, or below it, writes; folders that are there are not made again."""
        if (
            event not in WRITING
            or not isinstance(path, str | os.PathLike)
            or not Path(path).is_relative_to(self.folder or "")
        ):
            return False
        return event == "os.rename" or bool(
            not os.path.isdir(path) if event == "os.mkdir" else given[1] & (os.O_WRONLY | os.O_RDWR)
        )

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

    @contextmanager
    def refusing(self, folder: Path, number: int) -> Iterator[None]:
        """Have no room for the operation of this number, from 1, while entered; `count` is how many there were."""
        self.folder, self.refused, self.count = folder, number, 0
        try:
            yield
        finally:
            self.folder = self.refused = None


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
