"""A run that is stopped after any single operation on its folder goes on, by one of two commands, to the same bits.

What a killed process leaves is what its folder holds at that moment: one run is watched, and from each state that
differs a run is taken to its end.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from draw import some, thorough
from small_runs import make_recipe
from watching import watcher

from peftkit import files, recipe
from peftkit.errors import PeftkitError
from peftkit.recipe import Recipe
from peftkit.training import checkpoint, lock, log, session, train

METHODS = ("lora", "dora", "adalora", "ia3", "prefix-tuning", "serial-adapter")
FORMATS = ("none", "nf4")
CASES = [(method, storage) for method in METHODS for storage in FORMATS]
HELD = some("stopped anywhere", CASES, 2)
TRAIN: dict[str, Any] = {"max_steps": 3, "save_every": 1, "keep_checkpoints": 2, "batch_examples": 2}
STATES = 6
"""Of each case that `make test` holds."""
TIMES = ("tokens_per_s", "trained_tokens_per_s", "memory", "elapsed_s")


@pytest.fixture(autouse=True)
def _small_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda path, *_: files.write_bytes(path, b"picture"))


def kept(run: Path) -> tuple[list[dict[str, Any]], bytes, list[str]]:
    """What two runs have in common: the log without clocks, the adapter, and the names in the folder."""
    told = [{key: value for key, value in record.items() if key not in TIMES} for record in log.read(run / "log.jsonl")]
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
    return told, (run / "adapter" / "adapter.safetensors").read_bytes(), names


def go_on(chosen: Recipe, run: Path) -> None:
    """Take a run to its end as a person does: a command, and the other one where the first names it."""
    begun = (run / "recipe.yaml").exists()
    first, word = (False, "give --resume") if begun else (True, "Leave out --resume")
    with pytest.raises(PeftkitError, match=word):
        train(chosen, run, resume=first)
    train(chosen, run, resume=not first)


def go_on_from(states: list[Path], every: bool, chosen: Recipe, whole: Path) -> None:
    """Hold runs that go on from states, every one or some, to the run that nobody stopped."""
    expected = kept(whole)
    drawn = range(len(states)) if every else some(f"states of {chosen.method}", range(len(states)), STATES)
    for run in (states[place] for place in drawn):
        if (run / "summary.json").exists():
            train(chosen, run, resume=True)
            assert kept(run)[:2] == expected[:2], run
            continue
        go_on(chosen, run)
        assert kept(run) == expected, run


@pytest.mark.parametrize(("method", "storage"), [case if case in HELD else thorough(*case) for case in CASES])
@pytest.mark.parametrize("every", [False, thorough(True)], ids=["drawn", "every"])
def test_from_every_state_a_run_goes_on(method: str, storage: str, every: bool, source: Path, tmp_path: Path):
    chosen = recipe.load({**make_recipe(source, method, **TRAIN), "quantization": storage})
    with watcher().watching(tmp_path / "whole", tmp_path / "states") as states:
        train(chosen, tmp_path / "whole")
    assert len(states) > 25
    go_on_from(states, every, chosen, tmp_path / "whole")


@pytest.mark.parametrize("every", [False, thorough(True)], ids=["drawn", "every"])
def test_from_every_state_of_a_resumed_run_it_goes_on(every: bool, source: Path, tmp_path: Path):
    """A run that was stopped before its summary, and has an adapter that is replaced."""
    chosen = recipe.load(make_recipe(source, "lora", **TRAIN))
    train(chosen, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000003")
    with watcher().watching(tmp_path / "again", tmp_path / "states") as states:
        train(chosen, tmp_path / "again", resume=True)
    assert len(states) > 10
    go_on_from(states, every, chosen, tmp_path / "whole")


def test_the_states_are_those_of_a_run(source: Path, tmp_path: Path):
    """Among what is copied is each turn of a run: before its recipe, with a recipe alone, between its checkpoints."""
    chosen = recipe.load(make_recipe(source, "lora", max_steps=2, save_every=1, keep_checkpoints=1))
    with watcher().watching(tmp_path / "whole", tmp_path / "states") as states:
        train(chosen, tmp_path / "whole")
    held = [{path.name for path in run.iterdir()} if run.exists() else None for run in states]
    assert held[0] is None
    assert {lock.NAME} in held
    assert any(names and {"recipe.yaml"} == names - {lock.NAME} for names in held)
    assert any(names and any(name.endswith(".tmp") for name in names) for names in held)
    written = [[path.name for path in checkpoint.listed(run / "checkpoints")] for run in states]
    one, two = "step-00000001", "step-00000002"
    assert [names for place, names in enumerate(written) if names != written[place - 1]] == [
        [],
        [one],
        [one, two],
        [two],
    ]
    assert "summary.json" in (held[-1] or ())
