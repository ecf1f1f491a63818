"""Run folders, checkpoints and adapters of the first release of the formats open, go on and give what they gave.

Each folder of `runs/` holds one run of four steps, `finished`, and the same run `stopped` after its second step, as
they were written before the training loop was built from passes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from peftkit_cli.main import main

RUNS = Path(__file__).parent / "runs"
NAMES = sorted(path.name for path in RUNS.iterdir())
ROUNDING = 2e-4
"""How far sums of another order may carry a loss or a weight apart in two steps, relative to it."""


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_goes_on_as_it_would_have(name: str, tmp_path: Path) -> None:
    run, before = tmp_path / "run", RUNS / name / "finished"
    shutil.copytree(RUNS / name / "stopped", run)
    assert main(["train", str(run / "recipe.yaml"), "--resume", "--output", str(run)]) == 0
    for mine, earlier in zip(records(run), records(before), strict=True):
        keys = {"step", "loss", "lr", "grad_norm", "validation_loss"} & set(earlier)
        assert {key: mine[key] for key in keys} == pytest.approx({key: earlier[key] for key in keys}, rel=ROUNDING)
    mine, earlier = (load_file(path / "adapter" / "adapter.safetensors") for path in (run, before))
    assert mine.keys() == earlier.keys()
    for key, tensor in earlier.items():
        assert (mine[key] - tensor).norm() <= 10 * ROUNDING * tensor.norm(), key


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_run_is_scored_and_its_adapter_opens(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUNS / name / "finished", run)
    assert main(["train", str(run / "recipe.yaml"), "--resume", "--output", str(run)]) == 0
    assert main(["eval", str(run), "--limit", "2", "--json"]) == 0
    printed = capsys.readouterr().out
    scores = json.loads(printed[printed.index("{") :])
    assert scores
    earlier = (RUNS / name / "finished" / "summary.json").read_text(encoding="utf-8")
    assert (run / "summary.json").read_text(encoding="utf-8") == earlier
