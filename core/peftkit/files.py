"""Reading and writing files so that nothing is ever half-written: temporary name, sync, rename."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from peftkit import strict_json
from peftkit.errors import PeftkitError
from peftkit.posix import FOLDERS_OPEN, fcntl


@contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Turn an operating-system error inside into a PeftkitError that names the action and the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise PeftkitError(
            f"cannot {action} {path}: {reason}. Check that it exists, is writable and has space."
        ) from None


def expanded(path: str | Path) -> Path:
    """Return a path with home folders in the place of `~` and `~user`; PeftkitError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise PeftkitError(f"{path}: this system knows no home folder for {user}: write the folder itself.") from None


def sync(path: Path) -> None:
    """Flush a file or folder to the disk; a folder where the system has a way to."""
    if not FOLDERS_OPEN and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def followed(path: Path) -> Path:
    """Return where the links that a person put at `path` or above it lead to, there or not."""
    return Path(os.path.realpath(path))


def make_folder(path: Path) -> list[Path]:
    """Make a folder, at the end of a link where `path` is one, and those above it; returns what was made, top first."""
    with explained("write", path):
        place = followed(path)
        absent = [folder for folder in (place, *place.parents) if not folder.exists()][::-1]
        place.mkdir(parents=True, exist_ok=True)
    return absent


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that it holds; what a link leads to stays, and so does nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """List what a killed process left half-written in `folder`, by the names that this module gives it."""
    return [path for path in folder.iterdir() if LEFT.fullmatch(path.name)] if folder.is_dir() else []


LEFT = re.compile(r"\.(.+\.[a-z0-9_]+|step-\d+)\.(tmp|old)")


@contextmanager
def _temporary(path: Path, *, folder: bool) -> Iterator[Path]:
    """Yield a new file or folder beside `path`, which is gone in the end unless it was renamed.

    A lock tells it from those that killed processes left of the same name: they are removed first.
    """
    _sweep(path, "tmp")
    descriptor = None
    while descriptor is None:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        if folder:
            temporary.mkdir()
        else:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        descriptor = _hold(temporary)
    try:
        yield temporary
    finally:
        with suppress(OSError):
            remove(temporary)
        if descriptor != UNLOCKED:
            os.close(descriptor)


UNLOCKED = -1
"""Stands for a descriptor where the system or the disk has no locks."""


def _hold(path: Path) -> int | None:
    """Lock a file or folder by a descriptor, until that is closed; None where another process has it, or had it."""
    if fcntl is None or (not FOLDERS_OPEN and path.is_dir()):
        return UNLOCKED
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        return UNLOCKED
    os.close(descriptor)
    return None


def _sweep(path: Path, kind: str) -> None:
    """Remove what killed processes left beside `path` of its own: half-written files, or what had made way for it."""
    own = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.{kind}")
    for left in [item for item in path.parent.iterdir() if own.fullmatch(item.name)]:
        with suppress(OSError):
            descriptor = _hold(left)
            if descriptor is not None and descriptor != UNLOCKED:
                try:
                    remove(left)
                finally:
                    os.close(descriptor)


def _set_mode(path: Path, mode: int) -> None:
    # Some file systems know no modes, and refuse even the one that a file has.
    if stat.S_IMODE(path.stat().st_mode) != mode:
        os.chmod(path, mode)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes the place of `path`.

    The file has the mode of the one that was there, or what the umask leaves of 0666. A link at `path` is replaced.
    """
    with explained("write", path):
        make_folder(path.parent)
        with _temporary(path, folder=False) as temporary:
            like = path if path.is_file() and not path.is_symlink() else temporary
            mode = stat.S_IMODE(like.stat().st_mode)
            yield temporary
            _set_mode(temporary, mode)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` on success.

    With `replace` an existing folder gives way only once the new one is whole, and a link gives way without what it
    leads to; else a link is followed. The folder has the mode of the one that was there, or what the umask leaves of
    0777; what is in it has what that leaves of 0777 and of 0666. Raises PeftkitError where `path` is there and not
    empty and `replace` is false, or where the disk refuses.
    """
    if path.is_dir() and any(path.iterdir()) and not replace:
        raise PeftkitError(
            f"the folder {path} exists and is not empty: name another output folder, or remove it first."
        )
    if path.exists() and not path.is_dir():
        raise PeftkitError(f"{path} is a file, and an output folder is wanted: name another path.")
    with explained("write", path):
        place = path if replace else followed(path)
        make_folder(place.parent)
        with _temporary(place, folder=True) as temporary:
            mode = stat.S_IMODE(temporary.stat().st_mode)
            there = place.is_dir() and not place.is_symlink()
            own = stat.S_IMODE(place.stat().st_mode) if there else mode
            yield temporary
            for item in temporary.rglob("*"):
                _set_mode(item, mode if item.is_dir() else mode & 0o666)
                sync(item)
            _set_mode(temporary, own)
            sync(temporary)
            _exchange(temporary, place)
            sync(place.parent)


def _exchange(temporary: Path, place: Path) -> None:
    """Put a folder where another one, a link or nothing was."""
    if os.path.lexists(place):
        retired = temporary.with_suffix(".old")
        os.replace(place, retired)
        os.replace(temporary, place)
        # Another process that writes the same may sweep it too.
        with suppress(FileNotFoundError):
            remove(retired)
    else:
        os.replace(temporary, place)
    _sweep(place, "old")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: Path) -> str:
    """Read a UTF-8 text; a missing file or another encoding is a PeftkitError."""
    with explained("read", path):
        content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise not_utf8(path, line, error.start) from None


def not_utf8(path: Path, line: int, byte: int) -> PeftkitError:
    """Return the error of a text in another encoding."""
    return PeftkitError(f"{path}, line {line}: not UTF-8 text (byte {byte}). Save the file as UTF-8.")


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    state = hashlib.sha256()
    with explained("read", path), path.open("rb") as file:
        while piece := file.read(1 << 24):
            state.update(piece)
    return state.hexdigest()


def cache_folder() -> Path:
    """Return where what can be made again is kept: `PEFTKIT_CACHE`, or else `peftkit` in the user's cache folder."""
    own = os.environ.get("PEFTKIT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peftkit"


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 text without their ends; they end at a line feed, and at no other character."""
    lines = read_text(path).split("\n")
    return lines if lines[-1] else lines[:-1]


def read_json(path: Path) -> Any:
    """Read a JSON file; a fault is a PeftkitError that names the line."""
    text = read_text(path)
    try:
        return strict_json.loads(text)
    except strict_json.TwiceError as error:
        raise PeftkitError(f"{path}, line {error.line}: {error}.") from None
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise PeftkitError(f"{path}, line {line}: not valid JSON ({error}).") from None


def parse_json(text: str | bytes, place: str, wanted: str = "") -> Any:
    """Return the value of a JSON text; a fault is a PeftkitError that names its place, and what is wanted if given."""
    try:
        return strict_json.loads(text)
    except strict_json.TwiceError as error:
        line = f", line {error.line}" if error.several else ""
        raise PeftkitError(f"{place}{line}: {error}.") from None
    except RecursionError:
        raise PeftkitError(f"{place}: JSON nested too deeply to read{wanted}.") from None
    except ValueError as error:
        raise PeftkitError(f"{place}: not valid JSON ({error}){wanted}.") from None
