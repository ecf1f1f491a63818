"""What a run folder may suffer before, during and after a run, and what becomes of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import make_recipe, write_documents

from peftkit import files, lock, recipe
from peftkit.errors import PeftkitError
from peftkit.recipe import Recipe
from peftkit.training import Interrupted, Silent, checkpoint, folder, log, session, train
from peftkit_cli.main import main

TIMES = ("tokens_per_s", "trained_tokens_per_s", "memory", "elapsed_s")


class Acts(Silent):
    """Does something after a step, and remembers notices."""

    def __init__(self, after: int = 0, action: Callable[[], object] = lambda: None):
        self.after, self.action, self.notices = after, action, list[str]()

    def step(self, record: dict[str, Any]) -> None:
        if record["step"] == self.after:
            self.action()

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


def records(run: Path) -> list[dict[str, Any]]:
    """The log without what a clock decides."""
    return [{key: value for key, value in record.items() if key not in TIMES} for record in log.read(run / "log.jsonl")]


def adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter.safetensors").read_bytes()


def stop(chosen: Recipe, run: Path, after: int) -> None:
    """Train into a folder and interrupt the run after a step."""
    with pytest.raises(Interrupted):
        train(chosen, run, observer=Acts(after, lambda: os.kill(os.getpid(), 2)))


@pytest.fixture(scope="module")
def chosen(source: Path) -> Recipe:
    return recipe.load(make_recipe(source, "lora", max_steps=6, save_every=2, evaluate_every=3))


@pytest.fixture(scope="module")
def made(chosen: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the `whole` run, and one `stopped` after step 5, with checkpoints of the steps 4 and 5."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.plot, "draw_loss", lambda *_: None)
        train(chosen, place / "whole")
        stop(chosen, place / "stopped", 5)
    return place


@pytest.fixture
def stopped(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "stopped", tmp_path / "run")
    return tmp_path / "run"


def assert_as_whole(run: Path, made: Path) -> None:
    assert records(run) == records(made / "whole")
    assert adapter(run) == adapter(made / "whole")


# Leftovers.


@pytest.mark.parametrize("left", [".recipe.yaml.0a1b2c3d.tmp", ".recipe.yaml.x_y_1234.tmp", lock.NAME])
def test_a_run_that_was_killed_before_its_recipe_begins_again(left: str, chosen: Recipe, made: Path, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / left).write_text("")
    with pytest.raises(PeftkitError, match="Leave out --resume to begin one"):
        train(chosen, run, resume=True)
    train(chosen, run)
    assert_as_whole(run, made)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


# The log.


def cut(path: Path, lines: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: cut(path, 3),
    "half": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "damaged": lambda path: path.write_text(path.read_text().replace('"step": 2', '"st')),
    "changed": lambda path: path.write_text(path.read_text().replace('"lr": 0.01', '"lr": 0.1')),
    "not text": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_log_of_a_checkpoint_is_written_again(damage: str, chosen: Recipe, made: Path, stopped: Path):
    before = (stopped / "log.jsonl").read_bytes()
    DAMAGES[damage](stopped / "log.jsonl")
    assert not (stopped / "log.jsonl").exists() or (stopped / "log.jsonl").read_bytes() != before
    watcher = Acts()
    summary = train(chosen, stopped, resume=True, observer=watcher)
    assert any("its 5 records up to the checkpoint step-00000005 are written again" in text for text in watcher.notices)
    assert_as_whole(stopped, made)
    assert summary.steps == 6


def forget_log(path: Path) -> None:
    """Make a checkpoint one of an earlier version, which kept no log."""
    facts = json.loads((path / "state.json").read_text())
    for key in ("log", "digest", "recipe", "validation", "scored"):
        del facts[key]
    (path / "log.jsonl").unlink()
    files.write_json(path / "state.json", {**facts, "digest": checkpoint.digest_facts(facts)})


@pytest.mark.parametrize("damage", [None, "missing", "empty", "cut", "half", "damaged", "not text"])
def test_a_checkpoint_of_before_needs_the_whole_log(damage: str | None, chosen: Recipe, made: Path, stopped: Path):
    forget_log(checkpoint.listed(stopped / "checkpoints")[-1])
    if damage is None:
        train(chosen, stopped, resume=True)
        assert_as_whole(stopped, made)
        return
    DAMAGES[damage](stopped / "log.jsonl")
    with pytest.raises(PeftkitError, match=r"log.jsonl lacks the record of step \d|log.jsonl, line \d: not valid JSON"):
        train(chosen, stopped, resume=True)
    assert not (stopped / "summary.json").exists()


# Another run.


def test_a_checkpoint_of_another_recipe_is_refused(chosen: Recipe, source: Path, stopped: Path, tmp_path: Path):
    other = recipe.load(make_recipe(source, "lora", max_steps=6, save_every=2, evaluate_every=3, seed=2))
    train(other, tmp_path / "other")
    newest = checkpoint.listed(tmp_path / "other" / "checkpoints")[-1]
    shutil.copytree(newest, stopped / "checkpoints" / newest.name)
    fault = r"step-00000006 is a checkpoint of another run: train.seed was 2 and is 42 now.*continue from step-00000005"
    with pytest.raises(PeftkitError, match=fault):
        train(chosen, stopped, resume=True)


def test_changed_validation_data_is_refused(chosen: Recipe, source: Path, stopped: Path):
    (source / "data" / "validation.jsonl").write_text('{"text": "another text"}\n')
    try:
        with pytest.raises(PeftkitError, match="the validation data changed since"):
            train(chosen, stopped, resume=True)
    finally:
        write_documents(source / "data")


@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_at_once_in_one_folder(resume: bool, chosen: Recipe, made: Path, tmp_path: Path):
    run, refusals = tmp_path / "run", []

    def second() -> None:
        with pytest.raises(PeftkitError, match=rf"run is in use: process {os.getpid()} is training in it") as refused:
            train(chosen, run, resume=resume)
        refusals.append(refused.value.exit_code)

    def begin(self: Any, *given: Any) -> None:
        # Before the recipe is written, as after it.
        if not resume:
            second()
        original(self, *given)

    original = session.Session.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.Session, "__init__", begin)
        train(chosen, run, observer=Acts(2, second if resume else lambda: None))
    assert refusals == [2]
    assert_as_whole(run, made)
    assert not (run / lock.NAME).exists()


def test_a_lock_is_of_one_file(tmp_path: Path):
    """A folder that was removed and made anew is another one, and can be locked."""
    with lock.held(tmp_path / "above" / "run", print) as first:
        shutil.rmtree(tmp_path / "above")
        with pytest.raises(PeftkitError, match="removed or replaced"):
            first.check()
        with lock.held(tmp_path / "above" / "run", print) as second:
            second.check()
            assert not first.there
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_locks_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "fcntl", None)
    notices: list[str] = []
    with lock.held(tmp_path / "run", notices.append):
        pass
    assert len(notices) == 1
    assert "cannot be locked (this system has no flock)" in notices[0]


# Removed while it goes on.


@pytest.mark.parametrize("gone", [".", "log.jsonl"])
@pytest.mark.parametrize("after", [3, 6])
def test_a_run_whose_folder_goes_ends_with_an_error(gone: str, after: int, chosen: Recipe, tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(PeftkitError, match=r"log.jsonl was removed or replaced while the run was going on"):
        train(chosen, run, observer=Acts(after, lambda: files.remove(run / gone)))
    assert not (run / "summary.json").exists()
    assert gone != "." or not run.exists()


@pytest.mark.parametrize("gone", ["recipe.yaml", "adapter"])
def test_success_is_said_of_what_is_there(
    gone: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run, path = tmp_path / "run", tmp_path / "recipe.yaml"
    path.write_text(recipe.load(make_recipe(source, "lora", max_steps=1)).to_yaml())
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: files.remove(run / gone))
    assert main(["train", str(path), "--output", str(run)]) == 2
    told = capsys.readouterr()
    assert "The run is in" not in told.out
    assert f"{run} lacks {gone}" in told.err
    assert not (run / "summary.json").exists()


# Checkpoints that are of no use.


def empty(path: Path) -> None:
    for item in path.iterdir():
        item.unlink()


def sign(path: Path, **keys: Any) -> None:
    """Change facts of a checkpoint, under a digest that is right; None takes one away."""
    facts = {**json.loads((path / "state.json").read_text()), **keys}
    facts = {key: value for key, value in facts.items() if value is not None and key != "digest"}
    files.write_json(path / "state.json", {**facts, "digest": checkpoint.digest_facts(facts)})


FAULTS: dict[str, Callable[[Path], object]] = {
    "empty": empty,
    "no state": lambda path: (path / "state.json").unlink(),
    "no log": lambda path: (path / "log.jsonl").unlink(),
    "half": lambda path: (path / "adapter.safetensors").write_bytes(b"half"),
    "state": lambda path: (path / "state.json").write_text("{"),
    "no digests": lambda path: sign(path, sha256=None),
    "too few": lambda path: sign(path, sha256={}),
    "a path": lambda path: sign(path, sha256={"../../x": "0" * 64}),
    "no number": lambda path: sign(path, step="5"),
    "another step": lambda path: sign(path, step=7),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_last_whole_checkpoint_is_offered_with_the_command(
    fault: str, chosen: Recipe, made: Path, stopped: Path, tmp_path: Path
):
    FAULTS[fault](stopped / "checkpoints" / "step-00000005")
    with pytest.raises(PeftkitError, match="Remove that folder to continue from step-00000004") as refused:
        train(chosen, stopped, resume=True)
    command = str(refused.value).split("`")[1]
    assert command == f"rm -r {stopped}/checkpoints/step-00000005"
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    train(chosen, stopped, resume=True)
    assert_as_whole(stopped, made)


def test_what_is_no_checkpoint_stays_where_it_is(chosen: Recipe, made: Path, stopped: Path):
    for name in ("step-x", "step-00000009.bak", "step-9", "step-00000000"):
        (stopped / "checkpoints" / name).mkdir()
    train(chosen, stopped, resume=True)
    assert_as_whole(stopped, made)
    assert {"step-x", "step-00000009.bak", "step-9"} <= {path.name for path in (stopped / "checkpoints").iterdir()}


def test_a_step_of_nine_digits_is_newer_than_one_of_eight(tmp_path: Path):
    for name in ("step-100000000", "step-99999999"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoint.listed(tmp_path)] == ["step-99999999", "step-100000000"]


def test_a_checkpoint_that_is_written_is_whole(stopped: Path):
    """An empty folder of the same name is no reason to write none."""
    newest = checkpoint.listed(stopped / "checkpoints")[-1]
    parts, facts = checkpoint.read(newest)
    empty(newest)
    assert checkpoint.write(newest.parent, 5, parts, {"step": 5}) == newest
    assert checkpoint.whole(newest)
    assert checkpoint.read(newest)[0].keys() == parts.keys()
    assert facts["step"] == 5


# Links.


@pytest.mark.parametrize("there", [True, False])
def test_an_output_that_is_a_link_is_followed(there: bool, chosen: Recipe, made: Path, tmp_path: Path):
    if there:
        (tmp_path / "target").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "target")
    stop(chosen, tmp_path / "run", 3)
    train(chosen, tmp_path / "run", resume=True)
    assert_as_whole(tmp_path / "target", made)
    assert (tmp_path / "run").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "target"}


@pytest.mark.parametrize("name", ["adapter", "checkpoints", "checkpoints/step-00000004", "checkpoints/step-00000005"])
def test_links_within_a_run_take_nothing_with_them(name: str, chosen: Recipe, made: Path, stopped: Path):
    target = stopped.parent / "elsewhere"
    if (stopped / name).exists():
        (stopped / name).rename(target)
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    (stopped / name).symlink_to(target)
    held = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    train(chosen, stopped, resume=True)
    assert_as_whole(stopped, made)
    if name == "checkpoints":
        assert [path.name for path in checkpoint.listed(target)] == ["step-00000005", "step-00000006"]
        return
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == held


# Modes.


@pytest.mark.parametrize("umask", [0o077, 0o002], ids=oct)
def test_a_run_has_the_modes_that_the_umask_leaves(umask: int, chosen: Recipe, tmp_path: Path):
    before = os.umask(umask)
    try:
        train(chosen, tmp_path / "runs" / "run")
    finally:
        os.umask(before)
    written = [tmp_path / "runs", *(tmp_path / "runs").rglob("*")]
    assert len(written) > 10
    for path in written:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


# The recipe of a run.

BOMB = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{above}'] * 9)}]}}\n"
    for above, name in zip("abcdefg", "bcdefgh", strict=True)
)
"""Nine to the seventh keys, brought together by one mapping."""


@pytest.mark.parametrize(
    "text",
    [BOMB, "[" * 3000 + "]" * 3000, "a: " + "{b: " * 3000 + "}" * 3000, "seed: 2020-99-99\n", "- " * 3000, "\x00", ""],
    ids=["aliases", "lists", "mappings", "date", "dashes", "no text", "empty"],
)
def test_a_recipe_in_a_run_is_read_as_any_other(text: str, chosen: Recipe, stopped: Path):
    (stopped / "recipe.yaml").write_text(text)
    began = time.monotonic()
    with pytest.raises(PeftkitError, match=r"recipe.yaml"):
        folder.check_resumed(stopped, chosen)
    assert time.monotonic() - began < 3
