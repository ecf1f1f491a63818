"""Files and folders are whole or not there, have the modes that the umask leaves, and links lead where they should."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftkit import files
from peftkit.errors import PeftkitError

ROOT = Path(__file__).resolve().parents[1]
UNICODE = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven"
"""What `str.splitlines` takes for seven lines."""


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The process's umask, as the parameter says, while the test runs."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def write_folder(path: Path, **options: bool) -> None:
    with files.new_folder(path, **options) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text("new")
        # As a library writes that makes its files by mkstemp.
        os.close(os.open(folder / "secret", os.O_CREAT, 0o600))


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022, 0o002], indirect=True, ids=oct)
def test_modes_are_those_that_the_umask_leaves(umask: int, tmp_path: Path):
    files.write_text(tmp_path / "made" / "file", "text")
    write_folder(tmp_path / "folder")
    for path in (tmp_path / "made", tmp_path / "folder", tmp_path / "folder" / "below"):
        assert mode(path) == 0o777 & ~umask, path
    for path in ("made/file", "folder/secret", "folder/below/file"):
        assert mode(tmp_path / path) == 0o666 & ~umask, path


@pytest.mark.parametrize("umask", [0o022], indirect=True)
def test_what_was_there_keeps_its_mode(umask: int, tmp_path: Path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "folder").mkdir(0o700)
    files.write_text(tmp_path / "file", "new")
    write_folder(tmp_path / "folder")
    assert mode(tmp_path / "file") == 0o600
    assert mode(tmp_path / "folder") == 0o700


@pytest.mark.parametrize("there", ["empty", "dangling"])
def test_a_link_to_an_output_folder_is_followed(there: str, tmp_path: Path):
    if there == "empty":
        (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_folder(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target" / "below" / "file").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"link", "target"}


def test_a_link_to_a_full_folder_is_refused_and_its_target_stays(tmp_path: Path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(PeftkitError, match="is not empty"):
        write_folder(tmp_path / "link")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["mine"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_that_is_replaced_takes_nothing_with_it(there: bool, tmp_path: Path):
    if there:
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_folder(tmp_path / "link", replace=True)
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link" / "below" / "file").read_text() == "new"
    assert not there or [path.name for path in (tmp_path / "target").iterdir()] == ["mine"]
    assert {path.name for path in tmp_path.iterdir()} <= {"link", "target"}


def test_nothing_is_removed_through_a_link(tmp_path: Path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("mine")
    for name in ("link", "dangling", "file", "folder"):
        path = tmp_path / name
        if name == "folder":
            (path / "below").mkdir(parents=True)
            (path / "below" / "link").symlink_to(tmp_path / "target")
        elif name == "file":
            path.write_text("")
        else:
            path.symlink_to(tmp_path / ("target" if name == "link" else "nowhere"))
        files.remove(path)
    files.remove(tmp_path / "never")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "mine").read_text() == "mine"


def test_lines_end_at_line_feeds_alone(tmp_path: Path):
    (tmp_path / "file").write_bytes(f"{UNICODE}\r\n\nlast".encode())
    assert files.read_lines(tmp_path / "file") == [f"{UNICODE}\r", "", "last"]
    (tmp_path / "file").write_bytes(b"a\n")
    assert files.read_lines(tmp_path / "file") == ["a"]
    (tmp_path / "file").write_bytes(b"")
    assert files.read_lines(tmp_path / "file") == []


def test_no_file_is_split_where_a_text_breaks():
    """`str.splitlines` is for the first line of a message, never for what a file holds."""
    sources = [path for place in ("core", "cli", "tools") for path in sorted((ROOT / place).rglob("*.py"))]
    split = re.compile(r"(?<!str\(error\))(?<!__doc__)\.splitlines\(")
    assert not [str(path.relative_to(ROOT)) for path in sources if split.search(path.read_text(encoding="utf-8"))]


def left_by(path: Path, kind: str, *, folder: bool) -> Path:
    left = path.with_name(f".{path.name}.0123abcd.{kind}")
    if folder:
        left.mkdir()
        (left / "large").write_text("half")
    else:
        left.write_text("half")
    return left


@pytest.mark.parametrize("kind", ["tmp", "old"])
def test_what_a_killed_process_left_goes_when_the_folder_is_written_again(kind: str, tmp_path: Path):
    left = left_by(tmp_path / "model", kind, folder=True)
    other = left_by(tmp_path / "other", kind, folder=True)
    (tmp_path / "model").mkdir()
    write_folder(tmp_path / "model")
    assert not left.exists()
    assert other.exists(), "another output's may still be wanted"


def test_what_a_killed_process_left_goes_when_the_file_is_written_again(tmp_path: Path):
    left = left_by(tmp_path / "file", "tmp", folder=False)
    files.write_text(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], left


@pytest.mark.parametrize("folder", [True, False])
def test_what_another_process_writes_is_not_swept(folder: bool, tmp_path: Path):
    """A second writer of the same name, while the first is at it: both end, and the later one's stays."""
    path = tmp_path / "name"
    new = files.new_folder if folder else files.new_file
    with new(path, **({"replace": True} if folder else {})) as first:
        (first / "of first" if folder else first).write_text("first")
        with new(path, **({"replace": True} if folder else {})) as second:
            (second / "of second" if folder else second).write_text("second")
        assert first.exists()
    assert [item.name for item in tmp_path.iterdir()] == ["name"]
    assert (path / "of first" if folder else path).read_text() == "first"


def test_without_locks_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "fcntl", None)
    left = left_by(tmp_path / "file", "tmp", folder=False)
    files.write_text(tmp_path / "file", "new")
    assert left.exists()
    assert (tmp_path / "file").read_text() == "new"
