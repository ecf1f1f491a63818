"""`peft train` with several recipes, or with a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.training import session
from peftkit.training.loop import Loop

pytestmark = pytest.mark.usefixtures("few_validation_examples")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


def second(recipe: Path, **words: str) -> Path:
    """Another recipe beside `recipe`, with words of it replaced."""
    text = recipe.read_text(encoding="utf-8")
    for old, new in words.items():
        text = text.replace(old, new)
    path = recipe.with_name("other.yaml")
    path.write_text(text, encoding="utf-8")
    return path


def test_recipes_are_trained_together_and_resumed(peft, recipe, tmp_path):
    other = second(recipe, lora="dora")
    done = peft("train", recipe, other, "train.max_steps=3", "--together")
    assert done.code == 0, done.err
    assert "training 2 runs together: small, other" in done.out
    assert "small: step 3/3" in done.out
    assert "other: done: 3 steps" in done.out
    for name in ("small", "other"):
        assert (tmp_path / "runs" / name / "adapter" / "adapter.safetensors").is_file()
    again = peft("train", recipe, other, "train.max_steps=3", "--together")
    assert (again.code, "already holds" in again.err) == (2, True)
    resumed = peft("train", recipe, other, "train.max_steps=3", "--together", "--resume")
    assert resumed.code == 0, resumed.err
    assert "is finished: there is nothing to resume" in resumed.out


def test_a_sweep_is_trained_together_into_folders_named_by_its_values(peft, recipe, tmp_path):
    done = peft(
        "train", recipe, "sweep={rank: [2, 3], train.learning_rate: [1e-4, 1e-3]}", "-o", "out", "dataset.limit=16"
    )
    assert done.code == 0, done.err
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == [f"rank-{rank}_learning_rate-{rate}" for rank in (2, 3) for rate in ("0.0001", "0.001")]
    for name in found:
        assert name in done.out
        # Any of them is a run as others are.
        own = tmp_path / "out" / name
        assert peft("train", own / "recipe.yaml", "--resume", "-o", own).code == 0


def test_a_run_that_diverges_is_told_of_and_the_exit_code_is_1(peft, recipe, tmp_path, monkeypatch):
    begin = Loop.next

    def spoil(loop: Loop) -> Any:
        if loop.adaptation.methods[0].options().get("rank") == 2:
            with torch.no_grad():
                for _, parameter in loop.adaptation.parameters():
                    parameter.fill_(torch.nan)
        return begin(loop)

    monkeypatch.setattr(Loop, "next", spoil)
    done = peft("train", recipe, "sweep={rank: [2, 3]}", "dataset.limit=16")
    assert done.code == 1
    assert "ended early: rank-2: the loss is nan at step 1 of 2" in done.out
    assert "rank-3: done: 2 steps" in done.out
    assert not (tmp_path / "runs/small/rank-2/summary.json").exists()


def test_validate_and_dry_run_show_every_run(peft, recipe):
    for command in (("validate", recipe), ("train", recipe, "--dry-run")):
        done = peft(*command, "sweep={rank: [2, 3]}")
        assert done.code == 0, done.err
        assert "runs/small/rank-2" in done.out
        assert "runs/small/rank-3" in done.out


def test_mistakes_are_told(peft, recipe):
    other = second(recipe, lora="{lora: {init: pissa}}")
    done = peft("train", recipe, other)
    assert (done.code, "with --together the name of another recipe" in done.err) == (2, True)
    done = peft("train", recipe, recipe, "--together")
    assert (done.code, "small and small would both be written to" in done.err) == (2, True)
    done = peft("train", recipe, other, "--together")
    assert (done.code, "the method 'lora' starts by changing" in done.err) == (2, True)
    done = peft("train", recipe, second(recipe, none="nf4"), "--together")
    assert (done.code, "quantization.format is 'none' in small and 'nf4' in other" in done.err) == (2, True)
    done = peft("eval", recipe, "sweep={rank: [2, 3]}", "--base")
    assert (done.code, "has a sweep over rank" in done.err) == (2, True)
