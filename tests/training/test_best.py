"""Scores while a run goes on, the adapter of the best step, early stopping, and all of it resumed bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import make_recipe

from peftkit import recipe, tensor_file
from peftkit.errors import PeftkitError
from peftkit.plan import plan
from peftkit.training import Interrupted, Silent, checkpoint, log, session, train
from peftkit.training.best import Best

TIMES = ("tokens_per_s", "trained_tokens_per_s", "memory", "elapsed_s")


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch):
    """Leave out the picture, which takes longer than the run."""
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


class Stops(Silent):
    """Interrupts its own process after a step."""

    def __init__(self, after: int):
        self.after = after
        self.notices: list[str] = []

    def step(self, record: dict[str, Any]) -> None:
        import os

        if record["step"] == self.after:
            os.kill(os.getpid(), signal.SIGINT)

    def notice(self, text: str) -> None:
        self.notices.append(text)


def records(run: Path) -> list[dict[str, Any]]:
    """The log without what a clock decides."""
    return [{key: value for key, value in record.items() if key not in TIMES} for record in log.read(run / "log.jsonl")]


def adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter.safetensors").read_bytes()


def answering(folder: Path, method: Any, **train_keys: Any) -> dict[str, Any]:
    """A small recipe on inputs with references, whose answers are a few tokens long."""
    keys = make_recipe(folder, method, max_length=128, **train_keys)
    keys["dataset"] = {"name": "bundled/e2e", "limit": 12}
    keys["generation"] = {"max_new_tokens": 6}
    return keys


def steady(**keys: Any) -> dict[str, Any]:
    """Steps so large that the loss does not only fall, and of one length, so that a shorter run has the same ones."""
    return {"learning_rate": 3.0, "schedule": "constant", "warmup": 0, "evaluate_every": 2, **keys}


def test_the_best_is_the_first_of_equals_and_waiting_is_counted():
    best = Best("BLEU-4", patience=2)
    seen = [
        best.see({"step": step, "scores": {"BLEU-4": score}}, dict) for step, score in ((1, 0.2), (2, 0.5), (3, 0.5))
    ]
    assert seen == [True, True, False]
    assert not best.see({"step": 4, "loss": 1.0}, dict)
    assert (best.step, best.value, best.waited, best.exhausted) == (2, 0.5, 1, False)
    best.see({"step": 5, "scores": {"BLEU-4": 0.1}}, dict)
    assert best.exhausted
    with pytest.raises(PeftkitError, match=r"BLEU-4 could not be computed at step 6.*other"):
        best.see({"step": 6, "scores": {"other": 1.0}}, dict)


@pytest.mark.parametrize("wanted", ["validation_loss", "-error"])
def test_lower_is_better_for_losses_and_where_it_is_said(wanted: str):
    best = Best(wanted)
    values = [{"step": step, "validation_loss": x, "scores": {"error": x}} for step, x in enumerate((3.0, 1.0, 2.0))]
    assert [best.see(record, dict) for record in values] == [True, True, False]


def test_what_is_kept_does_not_change_with_the_model():
    weight = torch.zeros(2)
    best = Best("validation_loss")
    best.see({"step": 1, "validation_loss": 1.0}, lambda: {"weight": weight})
    weight += 1
    assert best.tensors["weight"].tolist() == [0, 0]


def test_the_adapter_of_the_best_step_is_the_runs(source: Path, tmp_path: Path):
    given = make_recipe(source, "lora", max_steps=12, keep_best="validation_loss", **steady(learning_rate=1.0))
    notices = Stops(0)
    summary = train(recipe.load(given), tmp_path / "run", observer=notices)
    measured = {r["step"]: r["validation_loss"] for r in log.read(tmp_path / "run/log.jsonl") if "validation_loss" in r}
    step = min(measured, key=measured.__getitem__)
    assert step < 12, "the last step is the best one: the test shows nothing"
    assert summary.best == {"metric": "validation_loss", "value": measured[step], "step": step}
    assert summary.losses["validation"] == measured[step]
    assert not summary.stopped_early
    assert any(f"the adapter of step {step} is kept" in notice for notice in notices.notices)
    shorter = make_recipe(source, "lora", max_steps=step, **steady(learning_rate=1.0))
    train(recipe.load(shorter), tmp_path / "shorter")
    assert adapter(tmp_path / "run") == adapter(tmp_path / "shorter")
    assert json.loads((tmp_path / "run/summary.json").read_text())["best"] == summary.best


def test_a_run_stops_when_nothing_gets_better(source: Path, tmp_path: Path):
    given = make_recipe(source, "lora", max_steps=60, keep_best="validation_loss", patience=2, **steady())
    notices = Stops(0)
    summary = train(recipe.load(given), tmp_path / "run", observer=notices)
    assert summary.stopped_early
    assert summary.steps < 60
    assert summary.best
    assert summary.steps == summary.best["step"] + 4, "two measurements, two steps apart"
    assert any(f"stopped early after step {summary.steps}" in notice for notice in notices.notices)


METHODS = ["full", "dylora", "prefix-tuning", "adalora", "sora"]


@pytest.mark.parametrize("method", METHODS)
def test_scores_and_the_best_are_resumed_bit_for_bit(method: str, source: Path, tmp_path: Path):
    keys = steady(score_every=2, score_inputs=3, keep_best="ROUGE-L", patience=3, evaluate_every=None)
    chosen = recipe.load(answering(source, method, max_steps=10, **keys))
    whole = train(chosen, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "parts", observer=Stops(3))
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "parts", resume=True, observer=Stops(4))
    parts = train(chosen, tmp_path / "parts", resume=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert adapter(tmp_path / "parts") == adapter(tmp_path / "whole")
    assert (parts.best, parts.scores, parts.losses) == (whole.best, whole.scores, whole.losses)
    scored = [record["step"] for record in records(tmp_path / "whole") if "scores" in record]
    assert scored[:2] == [2, 4]
    newest = checkpoint.listed(tmp_path / "parts/checkpoints")[-1]
    kept = tensor_file.read_tensors(newest / "best.safetensors")
    assert kept.keys() == tensor_file.read_tensors(newest / "adapter.safetensors").keys()


def test_measuring_changes_no_step(source: Path, tmp_path: Path):
    """Scores draw nothing from the generators that training uses, and dropout is on again afterwards."""
    method = {"lora": {"rank": 2, "dropout": 0.3}}
    for name, keys in (("without", {}), ("with", {"score_every": 2, "score_inputs": 3})):
        train(recipe.load(answering(source, method, max_steps=6, **keys)), tmp_path / name)
    losses = [[record["loss"] for record in records(tmp_path / name)] for name in ("without", "with")]
    assert losses[0] == losses[1]
    assert adapter(tmp_path / "without") == adapter(tmp_path / "with")


def test_scores_are_in_the_events(source: Path, tmp_path: Path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = answering(source, "lora", max_steps=4, score_every=2, score_inputs=2, log=["tensorboard"])
    train(recipe.load(given), tmp_path / "run")
    result = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in result.Scalars("scores/ROUGE-L")] == [2, 4]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"keep_best": "BLEU-5", "score_every": 2}, r"train.keep_best: found 'BLEU-5'; allowed: .*mean 'BLEU-"),
        ({"keep_best": "BLEU-4"}, "without score_every"),
        ({"keep_best": "validation_loss"}, "without evaluate_every"),
        ({"patience": 2}, "without keep_best"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(keys: dict[str, Any], message: str, source: Path, tmp_path: Path):
    for action in (plan, lambda chosen: train(chosen, tmp_path / "run")):
        with pytest.raises(PeftkitError, match=message):
            action(recipe.load(answering(source, "lora", max_steps=2, **keys)))
    assert not (tmp_path / "run").exists()


def test_documents_have_no_scores(source: Path, tmp_path: Path):
    with pytest.raises(PeftkitError, match="the data set text has no metrics"):
        train(recipe.load(make_recipe(source, max_steps=2, score_every=1)), tmp_path / "run")
