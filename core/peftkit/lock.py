"""A folder, or a part of one, is one process's at a time: a lock of the system, which ends with that process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.posix import fcntl

NAME = ".lock"
"""The file in the run folder that is locked; it holds the number of the process. Killed, a process leaves it there."""


class BusyError(PeftkitError):
    """Another process has the folder."""


class Lock:
    """The lock that this process has on a run folder, by its open file."""

    def __init__(self, path: Path, descriptor: int):
        self.path, self._known = path, os.fstat(descriptor)

    @property
    def there(self) -> bool:
        """Whether the folder is still the locked one: neither removed nor made anew."""
        return same(self.path, self._known)

    def check(self) -> None:
        """Raise PeftkitError where the folder is not the locked one any more."""
        if not self.there:
            raise PeftkitError(lost(self.path))


BUSY = (
    "the run folder {} is in use: {} is training in it. Wait for its end, stop it, or name another folder with "
    "--output. Nothing in it was touched."
)


@contextmanager
def held(run: Path, notice: Callable[[str], None], name: str = NAME, busy: str = BUSY) -> Iterator[Lock]:
    """Lock a run folder, which is made where there is none; BusyError where another process has it.

    `name` locks a part of the folder alone, and `busy` says of it and its holder that it is in use. Folders that were
    made and hold nothing in the end are removed again. `notice` is told where there are no locks.
    """
    made = files.make_folder(run)
    path = run / name
    try:
        with files.explained("lock", path):
            descriptor = _open(path, notice, busy)
        lock = Lock(path, descriptor)
        try:
            yield lock
        finally:
            if lock.there:
                with suppress(OSError):
                    path.unlink()
            os.close(descriptor)
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


def _open(path: Path, notice: Callable[[str], None], busy: str) -> int:
    """Open and lock the file; returns its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(path, descriptor, notice, busy)
            if same(path, os.fstat(descriptor)):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Its holder removed it at its end, between our opening and our lock.
        os.close(descriptor)


def _lock(path: Path, descriptor: int, notice: Callable[[str], None], busy: str) -> None:
    if fcntl is None:
        notice(UNLOCKED.format(path.parent, "this system has no flock"))
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        number = re.fullmatch(rb"(\d{1,10})\n", os.pread(descriptor, 16, 0))
        who = f"process {number[1].decode()}" if number else "another process"
        raise BusyError(busy.format(path.parent, who)) from None
    except OSError as error:
        notice(UNLOCKED.format(path.parent, error.strerror))


UNLOCKED = "{} cannot be locked ({}): take care that no second run is started in it."


def same(path: Path, known: os.stat_result) -> bool:
    """Say whether the file that is known is still the one at `path`."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), known)
    except OSError:
        return False


def lost(path: Path) -> str:
    """Say that a file of a run is gone while it goes on."""
    return (
        f"{path} was removed or replaced while the run was going on: what it learned after its last checkpoint is "
        "lost, and nothing more is written. Leave a run folder as it is until the run has ended."
    )
