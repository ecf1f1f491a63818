"""What methods see of the training data before the first step: one epoch, lazily, once for a run."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import make_recipe
from test_session import Stops, records

from peftkit import recipe
from peftkit.data.batches import Batches
from peftkit.methods import fishmask
from peftkit.methods.fishmask import FishMask
from peftkit.methods.lora import LoRA
from peftkit.training import Interrupted, preparation, session, train

EXAMPLES = 40
DROPOUT = {"lora": {"rank": 2, "dropout": 0.1}}


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The examples of every batch that was made, in order."""
    result: list[list[int]] = []
    collate = Batches.collate

    def watched(self: Batches, indices: Any, pad_id: int) -> Any:
        result.append(list(indices))
        return collate(self, indices, pad_id)

    monkeypatch.setattr(Batches, "collate", watched)
    return result


def test_a_method_that_asks_for_no_batch_costs_none(source: Path, made: list[list[int]]):
    preparation.prepare(recipe.load(make_recipe(source, "lora")))
    assert made == []


def test_a_method_gets_the_first_epoch_in_its_order_batch_by_batch(
    source: Path, made: list[list[int]], monkeypatch: pytest.MonkeyPatch
):
    passes: list[list[torch.Tensor]] = []

    def look(self: LoRA, model: Any, adapters: Any, batches: Any) -> None:
        next(iter(batches))
        assert len(made) == 1
        passes.extend([batch.input_ids for batch in batches] for _ in range(2))

    monkeypatch.setattr(LoRA, "prepare", look)
    prepared = preparation.prepare(recipe.load(make_recipe(source, "lora")))
    plan = prepared.loop.batches.plan(0)
    assert made == [plan[0], *plan, *plan]
    assert sorted(index for batch in plan for index in batch) == list(range(EXAMPLES))
    for seen in passes:
        expected = [prepared.loop.batches.collate(indices, 0).input_ids for indices in plan]
        assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))


@pytest.mark.parametrize(("samples", "batches"), [(1, 1), (8, 2), (9, 3), (EXAMPLES, 10), (1024, 10)])
def test_the_fisher_information_is_measured_on_as_many_examples_as_asked_for(
    samples: int, batches: int, source: Path, made: list[list[int]], monkeypatch: pytest.MonkeyPatch
):
    """Forty examples in batches of four."""
    measured: list[torch.Tensor] = []

    def fisher(model: Any, adapters: Any, rows: Any) -> None:
        measured.extend(ids for ids, _ in rows)

    monkeypatch.setattr(fishmask, "fisher", fisher)
    preparation.prepare(recipe.load(make_recipe(source, {"fishmask": {"samples": samples}})))
    assert len(measured) == min(samples, EXAMPLES)
    assert len(made) == batches


def test_looking_at_the_batches_leaves_the_run_as_it_is(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chosen = recipe.load(make_recipe(source, DROPOUT, max_steps=4))
    train(chosen, tmp_path / "plain")
    monkeypatch.setattr(LoRA, "prepare", lambda *given: [torch.rand(3) for _ in given[-1]])
    train(chosen, tmp_path / "looked")
    assert records(tmp_path / "looked") == records(tmp_path / "plain")


def test_a_resumed_run_prepares_no_second_time(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chosen = recipe.load(make_recipe(source, {"fishmask": {"density": 0.05}}, max_steps=6))
    train(chosen, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "parts", observer=Stops(3, signal.SIGINT))
    monkeypatch.setattr(FishMask, "prepare", lambda *_: pytest.fail("the information was measured again"))
    train(chosen, tmp_path / "parts", resume=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    adapters = [(tmp_path / name / "adapter" / "adapter.safetensors").read_bytes() for name in ("whole", "parts")]
    assert adapters[0] == adapters[1]
