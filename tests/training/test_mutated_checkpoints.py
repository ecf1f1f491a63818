"""Checkpoints changed at random and signed anew, so that no digest tells: a run goes on from them, or says why not."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from attempts import held, limited
from draw import thorough
from mutated_files import HELD, PORTIONS, mutate_one
from small_runs import make_recipe
from test_session import Stops

from peftkit import recipe
from peftkit.recipe import Recipe
from peftkit.training import Interrupted, checkpoint, session, train
from peftkit_cli.main import guarded

METHODS: list[Any] = ["lora", {"adalora": {"rank": 2, "initial_rank": 3}}, "full"]
KEPT = {"keep_best": "validation_loss", "evaluate_every": 1}


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


@pytest.fixture(scope="module")
def stopped(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Recipe, Path]]:
    """Runs of four steps that were stopped after the third, each with its recipe."""
    place, made = tmp_path_factory.mktemp("stopped"), []
    for number, method in enumerate(METHODS):
        train_section = {"max_steps": 4, "memory": "1GB", **(KEPT if number == 0 else {})}
        chosen = recipe.load(make_recipe(source, method, **train_section))
        with pytest.raises(Interrupted):
            train(chosen, place / str(number), observer=Stops(3, signal.SIGINT))
        made.append((chosen, place / str(number)))
    return made


def sign(path: Path) -> None:
    """Write the digests that the files of a checkpoint have now, as far as its facts can be read."""
    try:
        facts = json.loads((path / "state.json").read_bytes())
        facts.pop("digest", None)
        for part in facts["sha256"]:
            facts["sha256"][part] = checkpoint.digest((path / f"{part}.safetensors").read_bytes())
        facts["log"] = checkpoint.digest((path / checkpoint.LOG).read_bytes())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    else:
        signed = {**facts, "digest": checkpoint.digest_facts(facts)}
        (path / "state.json").write_text(json.dumps(signed), encoding="utf-8")


@pytest.mark.parametrize("cases", [HELD, *map(thorough, PORTIONS)], ids=lambda cases: f"{cases[0]}-{cases[-1]}")
def test_a_changed_checkpoint(cases: range, stopped: list[tuple[Recipe, Path]], tmp_path: Path, capsys: Any):
    for case in cases:
        chance, run = random.Random(case), tmp_path / str(case)
        chosen, made = stopped[case % len(stopped)]
        shutil.copytree(made, run)
        (path,) = checkpoint.listed(run / "checkpoints")
        told = f"case {case}: {mutate_one(path, chance)}"
        if chance.random() < 0.8:
            sign(path)
        there = held(run)
        with limited():
            code = guarded(lambda run=run, chosen=chosen: train(chosen, run, resume=True) and 0)
        assert code in (0, 2), f"{told}: {capsys.readouterr().err}"
        if code:
            assert held(run) == there, told
        else:
            assert (run / "summary.json").is_file(), told
        shutil.rmtree(run)
