"""Reading and writing files so that nothing is ever half-written: temporary name, sync, rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftkit.errors import PeftkitError


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


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes the place of `path`."""
    with explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            os.chmod(temporary, 0o644)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` on success.

    With `replace` an existing folder gives way only once the new one is whole. Raises PeftkitError where `path` is
    there and not empty and `replace` is false, or where the disk refuses.
    """
    if path.is_dir() and any(path.iterdir()) and not replace:
        raise PeftkitError(
            f"the folder {path} exists and is not empty: name another output folder, or remove it first."
        )
    if path.exists() and not path.is_dir():
        raise PeftkitError(f"{path} is a file, and an output folder is wanted: name another path.")
    with explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            os.chmod(temporary, 0o755)
            for item in temporary.rglob("*"):
                os.chmod(item, 0o755 if item.is_dir() else 0o644)
                sync(item)
            sync(temporary)
            if path.exists():
                retired = temporary.with_suffix(".old")
                os.replace(path, retired)
                os.replace(temporary, path)
                shutil.rmtree(retired)
            else:
                os.replace(temporary, path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


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
        raise PeftkitError(
            f"{path}, line {line}: not UTF-8 text (byte {error.start}). Save the file as UTF-8."
        ) from None


def read_json(path: Path) -> Any:
    """Read a JSON file; a fault is a PeftkitError that names the line."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise PeftkitError(f"{path}, line {line}: not valid JSON ({error}).") from None


def parse_json(text: str, place: str, wanted: str = "") -> Any:
    """Return the value of a JSON text; a fault is a PeftkitError that names its place, and what is wanted if given."""
    try:
        return json.loads(text)
    except RecursionError:
        raise PeftkitError(f"{place}: JSON nested too deeply to read{wanted}.") from None
    except ValueError as error:
        raise PeftkitError(f"{place}: not valid JSON ({error}){wanted}.") from None
