"""A run whose output is lost ends as on a signal: a checkpoint first, and it goes on from there."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from small_runs import make_recipe

from peftkit import recipe
from peftkit.errors import OutputLost
from peftkit.recipe import Recipe
from peftkit.together import Job, Stopped, train_together
from peftkit.training import Interrupted, Silent, checkpoint, session, train

FAULTS = {
    "left": (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, "not read any more"),
    "full": (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device"),
    "told": (OutputLost("standard output", OSError(errno.EIO, "Input/output error")), 2, "Input/output error"),
}


class Loses(Silent):
    """Cannot tell anything from one event on, and counts what it is asked after that."""

    def __init__(self, fault: Exception, event: str, at: int = 0):
        self.fault, self.event, self.at, self.later = fault, event, at, 0

    def _say(self, event: str, step: int = 0) -> None:
        if self.at < 0:
            self.later += 1
        elif event == self.event and step == self.at:
            self.at = -1
            raise self.fault

    def start(self, info: dict[str, Any]) -> None:
        self._say("start")

    def step(self, record: dict[str, Any]) -> None:
        self._say("step", record["step"])

    def saved(self, path: Path) -> None:
        self._say("saved")

    def end(self, summary: dict[str, Any]) -> None:
        self._say("end")


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


@pytest.fixture(scope="module")
def chosen(source: Path) -> Recipe:
    return recipe.load(make_recipe(source, "lora", max_steps=4, save_every=3))


@pytest.fixture(scope="module")
def whole(chosen: Recipe, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = tmp_path_factory.mktemp("whole") / "run"
    train(chosen, run)
    return adapter(run)


def adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter.safetensors").read_bytes()


@pytest.mark.parametrize(("event", "at", "stopped"), [("start", 0, 1), ("step", 2, 2), ("saved", 0, 3)])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_checkpoint_is_written_and_the_run_goes_on_from_it(
    kind: str, event: str, at: int, stopped: int, chosen: Recipe, whole: bytes, tmp_path: Path
):
    fault, code, told = FAULTS[kind]
    loses = Loses(fault, event, at)
    with pytest.raises(Interrupted, match=told) as caught:
        train(chosen, tmp_path / "run", observer=loses)
    assert (caught.value.exit_code, caught.value.step, loses.later) == (code, stopped, 0)
    assert caught.value.checkpoint == checkpoint.listed(tmp_path / "run" / "checkpoints")[-1]
    assert "--resume" in str(caught.value)
    train(chosen, tmp_path / "run", resume=True)
    assert adapter(tmp_path / "run") == whole


def test_a_run_that_cannot_tell_of_its_end_has_ended(chosen: Recipe, whole: bytes, tmp_path: Path):
    train(chosen, tmp_path / "run", observer=Loses(FAULTS["left"][0], "end"))
    assert adapter(tmp_path / "run") == whole


def test_runs_that_are_trained_together_all_write_checkpoints(chosen: Recipe, tmp_path: Path):
    names = ("one", "two")
    watched = {"one": Silent(), "two": Loses(FAULTS["left"][0], "step", 2)}
    jobs = [Job(name, chosen, tmp_path / name, watched[name]) for name in names]
    with pytest.raises(Stopped, match="not read any more; the checkpoints are") as caught:
        train_together(jobs)
    assert caught.value.exit_code == 141
    assert [path.name for path in caught.value.checkpoints] == ["step-00000002"] * 2
    for name in names:
        assert train(chosen, tmp_path / name, resume=True).steps == 4
