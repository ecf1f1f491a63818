"""A strategy in a file of its own takes steps by losses alone, and is named by a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small_runs import make_recipe
from test_loop import make_loop

from peftkit import recipe
from peftkit.data.batches import Batch
from peftkit.engine.passes import Passes
from peftkit.errors import PeftkitError
from peftkit.strategies import STRATEGIES, Step, Strategy, Update
from peftkit.together.base import check


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> type[Strategy]:
    """Register a strategy that goes where a random direction lowers the loss."""
    monkeypatch.setattr(STRATEGIES, "_entries", {**STRATEGIES._entries})

    @dataclass(frozen=True, kw_only=True)
    class Search(Strategy, name="search"):
        size: float = 1e-2

        @torch.no_grad()
        def step(self, passes: Passes, batches: Sequence[Batch], normaliser: int, update: Update) -> Step:
            before = passes.evaluate(batches, as_trained=True)
            update.check(before.loss / normaliser)
            generator = torch.Generator().manual_seed(update.seed + update.step)
            moves = [self.size * torch.randn(p.shape, generator=generator) for p in update.parameters]
            for parameter, move in zip(update.parameters, moves, strict=True):
                parameter += move
            after = passes.evaluate(batches, as_trained=True)
            if after.loss > before.loss:
                for parameter, move in zip(update.parameters, moves, strict=True):
                    parameter -= move
            return Step(before, 0.0)

    return Search


def test_a_strategy_of_losses_alone_trains_without_gradients_or_states(toy: type[Strategy]):
    loop = make_loop("lora", strategy={"search": {"size": 0.05}}, accumulation=2, max_steps=20, batch_examples=6)
    losses = [loop.run_step()["loss"] for _ in range(20)]
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in loop.parameters)
    assert loop.optimizer.state() == {}
    assert loop.step == 20


def test_losses_as_trained_on_are_smoothed_and_others_are_not():
    loop = make_loop("lora", label_smoothing=0.3)
    batches = [loop.batches.collate([0, 1], 0)]
    plain, smoothed = (loop.passes.evaluate(batches, as_trained=value) for value in (False, True))
    assert plain.loss != pytest.approx(smoothed.loss, rel=1e-3)
    assert plain.weight == smoothed.weight == batches[0].trained


def test_a_recipe_names_the_strategy_and_its_options(tmp_path, toy: type[Strategy]):
    loaded = recipe.load(make_recipe(tmp_path, "lora", max_steps=1, strategy="search"))
    assert loaded.train.strategy == {"search": {"size": 1e-2}}
    (tmp_path / "resolved.yaml").write_text(loaded.to_yaml())
    assert recipe.load(tmp_path / "resolved.yaml") == loaded
    with pytest.raises(PeftkitError, match=r"b cannot be trained together .*train.strategy is 'search'"):
        check([("a", recipe.load(make_recipe(tmp_path, "lora", max_steps=1))), ("b", loaded)])


@pytest.mark.parametrize("strategy", ["standart", {"standard": {"size": 1}}, 3, {"standard": 3}])
def test_a_wrong_strategy_is_told_where_it_stands(tmp_path, strategy: Any):
    with pytest.raises(PeftkitError, match=r"train\.strategy"):
        recipe.load(make_recipe(tmp_path, "lora", max_steps=1, strategy=strategy))
