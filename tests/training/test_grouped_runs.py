"""Runs with `train.group_prompts`: fewer tokens, exact resume, the plan and runs together hold as before."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from small_runs import WORDS, make_recipe
from test_session import Stops, Told, records
from test_together import compare

from peftkit import recipe
from peftkit.errors import PeftkitError
from peftkit.plan import plan
from peftkit.training import Interrupted, session, train

PROMPTS, ANSWERS = 10, 5


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


def write(path: Path, answers: int) -> Path:
    """Write `answers` answers to each of ten prompts; those of one prompt lie far apart."""
    lines = []
    for turn in range(answers):
        for number in range(PROMPTS):
            prompt = f"describe the {WORDS[number]} {WORDS[-1 - number]} number {number}"
            answer = " ".join(
                WORDS[(number * 7 + turn + place) % len(WORDS)] for place in range(1 + (number + turn) % 3)
            )
            lines.append(json.dumps({"prompt": prompt, "completion": answer}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("answers") / "train.jsonl", ANSWERS)


def load(source: Path, data: Path, method: Any = "lora", dropout: float = 0.0, **train: Any) -> recipe.Recipe:
    keys = make_recipe(source, method, **{"group_prompts": True, "precision": "fp32", "max_length": 128, **train})
    keys["model"]["init"]["attention_dropout"] = dropout
    return recipe.load({**keys, "dataset": {"name": "jsonl", "path": str(data), "template": "plain"}})


@pytest.mark.parametrize("limits", [{"batch_examples": 10}, {"batch_examples": None, "batch_tokens": 500}], ids=str)
def test_fewer_tokens_are_computed_and_the_run_says_so_at_its_start(
    limits: dict[str, Any], source: Path, answers: Path, tmp_path: Path
):
    summaries = {}
    for grouped in (False, True):
        notices = Told()
        chosen = load(source, answers, epochs=1, group_prompts=grouped, **limits)
        result = summaries[grouped] = train(chosen, tmp_path / str(grouped), observer=notices)
        (info,) = [value for name, value in notices.events if name == "start"]
        # All micro-batches are looked at here: what is told is what the epoch saves.
        assert info["saved"]["shared"] == pytest.approx((result.shared_tokens_saved or 0) / result.tokens, abs=1e-4)
    assert summaries[True].tokens == summaries[False].tokens
    assert (summaries[True].computed_tokens or 0) < 0.7 * (summaries[False].computed_tokens or 0)


def test_interrupted_in_an_epoch_and_resumed_equals_uninterrupted(source: Path, answers: Path, tmp_path: Path):
    method = {"lora": {"rank": 2, "dropout": 0.1}}
    chosen = load(source, answers, method, dropout=0.1, epochs=2, accumulation=3, evaluate_every=None)
    train(chosen, tmp_path / "whole")
    for resume, step in ((False, 2), (True, 7)):
        with pytest.raises(Interrupted):
            train(chosen, tmp_path / "parts", resume=resume, observer=Stops(step, signal.SIGINT))
    train(chosen, tmp_path / "parts", resume=True)
    result = records(tmp_path / "parts")
    assert len(result) == 10
    assert result == records(tmp_path / "whole")
    adapters = [(tmp_path / name / "adapter" / "adapter.safetensors").read_bytes() for name in ("whole", "parts")]
    assert adapters[0] == adapters[1]


def test_the_plan_is_what_the_run_does(source: Path, answers: Path, tmp_path: Path):
    chosen = load(source, answers, epochs=2, batch_examples=None, batch_tokens=300, memory="4GB")
    planned, summary = plan(chosen), train(chosen, tmp_path / "run")
    assert (summary.steps, summary.tokens, planned.epochs) == (planned.steps, planned.tokens, 2.0)


def test_runs_together_group_their_own_examples(source: Path, answers: Path, tmp_path: Path):
    compare(
        {
            "grouped": load(source, answers, max_steps=8),
            "mixed": load(source, answers, "ia3", max_steps=6, group_prompts=False, accumulation=2),
            "seeded": load(source, answers, max_steps=7, seed=3, batch_examples=None, batch_tokens=300),
        },
        tmp_path,
    )


def test_prompts_that_never_repeat_are_told_of(source: Path, tmp_path: Path):
    notices = Told()
    data = write(tmp_path / "train.jsonl", 1)
    train(load(source, data, max_steps=1), tmp_path / "run", observer=notices)
    assert any(name == "notice" and "train.group_prompts" in value for name, value in notices.events)
    notices = Told()
    train(load(source, data, max_steps=1, group_prompts=False), tmp_path / "other", observer=notices)
    assert not any(name == "notice" and "train.group_prompts" in value for name, value in notices.events)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_another_value_is_refused(value: Any, source: Path, answers: Path):
    with pytest.raises(PeftkitError, match=r"train\.group_prompts: found .*; allowed: true, false"):
        load(source, answers, group_prompts=value)
