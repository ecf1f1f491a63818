"""Files and folders are whole or not there, have the modes that the umask leaves, and links lead where they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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


def test_what_a_killed_process_left_beside_a_folder_goes_with_the_next_one(tmp_path: Path):
    left = tmp_path / ".out.0a1b2c3d.tmp"
    left.mkdir()
    (left / "weights").write_text("half")
    others = [tmp_path / name for name in (".out-2.0a1b2c3d.tmp", ".out.0a1b2c3d.tmp.d", ".out.mine.tmp")]
    for other in others:
        other.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    link = tmp_path / ".out.00000000.tmp"
    link.symlink_to(outside)
    with files.new_folder(tmp_path / "out") as folder:
        assert not left.exists()
        (folder / "a").write_text("a")
        # One that another process still writes stays.
        with files.new_folder(tmp_path / "out", replace=True) as second:
            assert folder.exists()
            (second / "a").write_text("b")
    assert (tmp_path / "out" / "a").read_text() == "a"
    assert sorted(tmp_path.iterdir()) == sorted([*others, outside, link, tmp_path / "out"])


def test_a_killed_merge_leaves_nothing_to_the_next_one(tmp_path: Path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom peftkit import files\n"
        "with files.new_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'weights').write_text('half')\n    os.kill(os.getpid(), 9)\n"
    )
    core = Path(files.__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], env={**os.environ, "PYTHONPATH": str(core)})
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    with files.new_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
