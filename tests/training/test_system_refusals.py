"""What the system refuses (permission, home folders, memory) is told in one paragraph with exit code 2."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from attempts import attempt, limited
from model_folders import write_model
from small_runs import make_recipe, write_documents

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.free_memory import check_room
from peftkit_cli import main as program
from peftkit_cli import system

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="a superuser's rights are given up one by one on Linux")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder, whatever of it has been locked."""
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


def without_rights(place: Path, *arguments: object) -> tuple[int, str]:
    """Run `peft` in a process that has no right to pass over modes; returns the exit code and what it said."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (place / "said").read_text()
    code = 99
    try:
        # Torch makes its threads anew at the first call after a fork, and may fail if two threads make it at once.
        torch.set_num_threads(1)
        give_up_rights()
        with (place / "said").open("w") as said, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = program.main([str(argument) for argument in arguments])
    finally:
        os._exit(code)


def give_up_rights() -> None:
    """Take the superuser's rights to read and write what modes forbid away from this process (capset(2), version 3)."""
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~(1 << 1 | 1 << 2)
    assert libc.capset(header, sets) == 0


@pytest.mark.parametrize(
    "locked", ["model", "model/model.safetensors", "model/config.json", "data", "data/train.jsonl"]
)
def test_what_may_not_be_read_is_told_with_its_name(locked: str, place: Path):
    write_model(place / "model")
    write_documents(place / "data")
    arguments = [
        "train",
        "quickstart",
        f"model={place / 'model'}",
        "dataset.name=text",
        f"dataset.path={place / 'data'}",
    ]
    arguments += ["method=lora", "--output", place / "run"]
    (place / locked).chmod(0)
    try:
        code, said = without_rights(place, *arguments)
    finally:
        (place / locked).chmod(0o755)
    assert code == 2, said
    assert "Permission denied" in said, said
    assert str(place / locked) in said, said
    assert not (place / "run").exists()


@LINUX
@pytest.mark.parametrize("locked", ["", "adapter", "adapter/adapter.json", "recipe.yaml", "summary.json"])
@pytest.mark.parametrize("command", ["eval", "report"])
def test_a_run_that_may_not_be_read_is_told_with_its_name(command: str, locked: str, place: Path):
    run = place / "run"
    (run / "adapter").mkdir(parents=True)
    recipe = {"model": "bundled/tiny", "method": "lora", "dataset": "bundled/e2e"}
    for name in ("recipe.yaml", "adapter/adapter.json", "summary.json"):
        (run / name).write_text(json.dumps(recipe))
    (run / locked).chmod(0)
    try:
        code, said = without_rights(place, command, run, *(["--output", place / "out"] if command == "report" else []))
    finally:
        (run / locked).chmod(0o755)
    assert code == 2, said
    assert "this is a bug" not in said, said
    if command == "eval" and locked != "summary.json":
        assert "Permission denied" in said, said
        assert str(run / locked) in said, said


@pytest.mark.parametrize("key", ["model={}", "dataset.path={}", "include=[{}.yaml]", "output={}", "adapters={{x: {}}}"])
def test_a_user_that_is_not_there_is_told(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    ended = attempt(["validate", "quickstart", key.format("~nouser/x")], key)
    assert ended.code == 2
    assert "~nouser" in ended.err
    assert "no home folder" in ended.err
    assert attempt(["validate", "~nouser/x.yaml"], "recipe").code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [10**9, 10**12, 2**62, 10**30])
@pytest.mark.parametrize("command", ["train", "estimate", "validate"])
def test_a_size_beyond_all_memory_is_told_before_it_is_taken(command: str, size: int, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    method = {"prefix-tuning": {"length": size}}
    recipe.write_text(json.dumps(make_recipe(tmp_path, method, max_steps=1)))
    ended = attempt([command, recipe, *(["--output", tmp_path / "run"] if command == "train" else [])], f"{size}")
    assert command != "train" or (ended.code == 2 and "prefix-tuning" in ended.err), ended
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_model_of_random_weights_beyond_all_memory_is_told_before_it_is_taken(tmp_path: Path):
    content = make_recipe(tmp_path, "lora", max_steps=1)
    for key, size in (("hidden_size", 2 * 10**7), ("num_hidden_layers", 10**7)):
        changed = {**content, "model": {**content["model"], "init": {**content["model"]["init"], key: size}}}
        (tmp_path / "recipe.yaml").write_text(json.dumps(changed))
        ended = attempt(["train", tmp_path / "recipe.yaml", "--output", tmp_path / "run"], key)
        assert ended.code == 2
        assert "model.init" in ended.err, ended


def test_a_configuration_of_sizes_that_the_weights_have_not_is_told_before_they_are_taken(tmp_path: Path):
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for key, size in (("intermediate_size", 10**11), ("vocab_size", 10**11), ("num_hidden_layers", 10**7)):
        (folder / "config.json").write_text(json.dumps({**config, key: size}))
        data = write_documents(tmp_path / "data")
        arguments = ["train", "quickstart", f"model={folder}", "dataset.name=text", f"dataset.path={data}"]
        ended = attempt([*arguments, "method=lora", "--output", tmp_path / "run"], key)
        assert ended.code == 2
        assert "config.json" in ended.err, ended
        assert "allocate" not in ended.err, ended


def test_no_room_is_told_with_what_was_to_have_it(tmp_path: Path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemAvailable: 1000 kB\n")
    check_room(1_000_000, "lora", tmp_path)
    with pytest.raises(PeftkitError, match=r"lora: 0\.0 GB of memory would be needed"):
        check_room(2_000_000, "lora", tmp_path)
    check_room(2_000_000, "lora", tmp_path / "nowhere")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "some/file"),
        OSError(errno.ENOSPC, "No space left on device", "some/file"),
        MemoryError("some/file"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: some/file"),
        RuntimeError("DefaultCPUAllocator: not enough memory: some/file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_answer_of_the_system_is_no_bug(error: Exception, capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        raise error

    assert program.guarded(fail) == 2
    said = capsys.readouterr().err
    assert "some/file" in said
    assert "bug" not in said


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2"), OSError("no number"), ValueError("x")])
def test_what_the_system_did_not_answer_stays_a_bug(error: Exception):
    assert system.told(error) is None


def test_memory_that_the_system_refuses_is_told():
    import torch

    with limited(), pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 33)
    assert "memory ran out" in (system.told(caught.value) or "")


def test_home_folders_are_written_out():
    assert files.expanded("~/x") == Path.home() / "x"
    assert files.expanded("x/~") == Path("x/~")
