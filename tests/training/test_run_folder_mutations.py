"""Run folders changed at random: a resumed run ends with the same bits or is refused; nothing in it is lost."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from draw import thorough
from mutations import DAMAGES, HELD, PORTIONS, SECONDS, content, mutate
from small_runs import make_recipe
from test_session import Stops

from peftkit import recipe
from peftkit.errors import PeftkitError
from peftkit.recipe import Recipe
from peftkit.training import Interrupted, session, train


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


@pytest.fixture(scope="module")
def chosen(source: Path) -> Recipe:
    return recipe.load(
        make_recipe(source, "lora", max_steps=6, save_every=2, keep_best="validation_loss", evaluate_every=2)
    )


@pytest.fixture(scope="module")
def made(chosen: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the `whole` run, and one `stopped` after step 5."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.plot, "draw_loss", lambda *_: None)
        train(chosen, place / "whole")
        with pytest.raises(Interrupted):
            train(chosen, place / "stopped", observer=Stops(5, signal.SIGINT))
    return place


@pytest.mark.parametrize("cases", [HELD, *map(thorough, PORTIONS)], ids=lambda cases: f"{cases[0]}-{cases[-1]}")
def test_a_changed_run_folder(cases: range, chosen: Recipe, made: Path, tmp_path: Path):
    expected = (made / "whole" / "adapter" / "adapter.safetensors").read_bytes()
    for case in cases:
        chance, run = random.Random(case), tmp_path / str(case)
        shutil.copytree(made / "stopped", run)
        told = f"case {case}: {mutate(run, chance, DAMAGES)}"
        held = content(run)
        began = time.monotonic()
        try:
            train(chosen, run, resume=True)
        except PeftkitError:
            now = content(run)
            assert now == held, f"{told}: a refused command changed {set(now) ^ set(held) or 'a file'}"
        else:
            assert (run / "adapter" / "adapter.safetensors").read_bytes() == expected, told
        assert time.monotonic() - began < SECONDS, told
        shutil.rmtree(run)
