"""A run whose formats a budget of bits chose: they are written down, and never chosen again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from small_runs import make_recipe

from peftkit import recipe
from peftkit.adaptation import DESCRIPTION
from peftkit.errors import PeftkitError
from peftkit.evaluation import prepare
from peftkit.files import read_json
from peftkit.quantization import allocation
from peftkit.training import Interrupted, Silent, train

pytest.importorskip("scipy")


class Stops(Silent):
    """Interrupts the run after three steps."""

    def step(self, record):
        import os

        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_goes_on_and_opens_with_the_formats_that_it_began_with(source: Path, tmp_path: Path, monkeypatch):
    keys = make_recipe(source, {"lora": {"rank": 2, "targets": "linear"}}, max_steps=6)
    chosen = recipe.load({**keys, "quantization": {"budget": 4.2, "init": "lq-lora"}})
    train(chosen, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "parts", observer=Stops())
    monkeypatch.setattr(allocation, "error", lambda *_: pytest.fail("a weight was packed to see what it loses"))
    monkeypatch.setattr(torch.linalg, "svd", lambda *_, **__: pytest.fail("a weight was factorised again"))
    train(chosen, tmp_path / "parts", resume=True)
    adapters = [(tmp_path / name / "adapter" / "adapter.safetensors").read_bytes() for name in ("whole", "parts")]
    assert adapters[0] == adapters[1]
    written = recipe.load(tmp_path / "parts" / "recipe.yaml")
    assert written.quantization.budget == 4.2
    stored = read_json(tmp_path / "parts" / "adapter" / DESCRIPTION)["base"]["quantization"]
    assert stored["modules"] == {path: choice.model_dump() for path, choice in written.quantization.modules.items()}
    assert len(stored["modules"]) == 14
    prepare(written, tmp_path / "parts" / "adapter")
    other = recipe.load({**keys, "quantization": {"budget": 4.5, "init": "lq-lora"}})
    with pytest.raises(PeftkitError, match=r"quantization\.budget was 4\.2 and is 4\.5 now"):
        train(other, tmp_path / "parts", resume=True)
