"""Where a recipe leaves the precision to the machine, it is measured once: a resumed run keeps it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_runs import make_recipe

from peftkit import device, recipe
from peftkit.errors import PeftkitError
from peftkit.training import Silent, checkpoint, train


class Told(Silent):
    """Keeps what a person is told, and stops after so many steps."""

    def __init__(self, steps: int | None = None):
        self.notices: list[str] = []
        self.steps = steps

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def saved(self, path: Path) -> None:
        if self.steps is not None and path.name == f"step-{self.steps:08d}":
            raise PeftkitError("stopped here")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The share of the time of fp32 that bf16 takes, on a processor that has it, for a model of any size."""
    share = [0.1]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(device, "SMALL", 1)
    monkeypatch.setattr(device, "product_seconds", lambda *_: (1.0, share[0]))
    return share


def test_a_resumed_run_keeps_what_was_measured_at_its_start(tmp_path, measured):
    given = recipe.load(make_recipe(tmp_path, "lora", max_steps=4, save_every=2))
    whole = train(given, tmp_path / "whole")
    told, run = Told(2), tmp_path / "run"
    with pytest.raises(PeftkitError, match="stopped here"):
        train(given, run, observer=told)
    assert any(text.startswith("precision bf16: a product of 512 tokens") for text in told.notices)
    assert checkpoint.precision(run / "checkpoints") == "bf16"
    # The other machine is quicker in fp32.
    measured[0] = 2.0
    summary = train(given, run, resume=True)
    assert summary.precision == whole.precision == "bf16"
    losses = [
        [json.loads(line)["loss"] for line in (place / "log.jsonl").read_text().splitlines()]
        for place in (tmp_path / "whole", run)
    ]
    assert losses[0] == losses[1]
    assert train(given, tmp_path / "anew").precision == "fp32"


def test_what_a_recipe_says_is_what_its_run_does(tmp_path, measured):
    given = recipe.load(make_recipe(tmp_path, "lora", max_steps=2, precision="fp32"))
    told = Told()
    assert train(given, tmp_path / "run", observer=told).precision == "fp32"
    assert not [text for text in told.notices if "precision" in text]


def test_a_damaged_checkpoint_tells_no_precision(tmp_path):
    assert checkpoint.precision(tmp_path) is None
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / "step-00000002" / "state.json").write_text("{")
    assert checkpoint.precision(tmp_path) is None
    (tmp_path / "step-00000002" / "state.json").write_text('{"precision": "int1"}')
    assert checkpoint.precision(tmp_path) is None
