"""The loss scale of fp16: gradients are what they are without it, and an overflow leaves no trace."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from peftkit import recipe
from peftkit.engine import scaled
from peftkit.engine.passes import Passes, Result
from peftkit.engine.scaled import FIRST, STATE, Scaled
from peftkit.training import train
from peftkit.training.preparation import prepare

sys.path.append(str(Path(__file__).resolve().parent.parent / "training"))
from small_runs import make_recipe


def prepared(folder: Path, **train_keys):
    return prepare(recipe.load(make_recipe(folder, "lora", max_steps=3, **train_keys)))


def gradients(passes: Passes, batches) -> tuple[Result, list[torch.Tensor]]:
    torch.manual_seed(0)
    done = passes.backward(batches, 7)
    found = [parameter.grad.clone() for parameter in passes.plain.parameters]
    for parameter in passes.plain.parameters:
        parameter.grad = None
    return done, found


def test_the_gradients_are_those_without_a_scale(tmp_path):
    ready = prepared(tmp_path, precision="fp32")
    plain, batches = ready.loop.passes.plain, [ready.batches.collate([0, 1, 2], ready.loop.pad_id)]
    before, expected = gradients(plain, batches)
    done, found = gradients(Scaled(plain), batches)
    # A power of two changes no bit.
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert (done.loss, done.facts[STATE]) == (before.loss, FIRST)
    assert plain.scale == 1.0


class Overflowing(Passes):
    """Plain passes whose gradients overflow above a factor."""

    def __init__(self, plain, limit: float):
        self.plain, self.limit, self.seen = plain, limit, []

    def backward(self, batches, normaliser):
        done = self.plain.backward(batches, normaliser)
        self.seen.append(self.plain.scale)
        if self.plain.scale > self.limit:
            self.plain.parameters[0].grad.flatten()[0] = torch.inf
        return done


def test_an_overflow_halves_the_scale_and_repeats_the_step_as_if_nothing_had_been(tmp_path):
    ready = prepared(tmp_path, precision="fp32")
    plain, batches = ready.loop.passes.plain, [ready.batches.collate([0, 1, 2], ready.loop.pad_id)]
    _, expected = gradients(plain, batches)
    passes = Overflowing(plain, FIRST / 4)
    wrapped = Scaled(passes)
    _, found = gradients(wrapped, batches)
    assert passes.seen == [FIRST, FIRST / 2, FIRST / 4]
    # The model draws dropout: the same numbers each time.
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    again = Scaled(passes)
    again.load_state({STATE: wrapped.state()[STATE]})
    assert (again.scale, again.steps) == (FIRST / 4, 1)


def test_what_overflows_at_any_scale_is_left_for_the_step_to_refuse(tmp_path):
    ready = prepared(tmp_path, precision="fp32")
    plain, batches = ready.loop.passes.plain, [ready.batches.collate([0], ready.loop.pad_id)]
    passes = Overflowing(plain, 0.5)
    _, found = gradients(Scaled(passes), batches)
    assert passes.seen[-1] == 1.0
    assert torch.isinf(found[0]).any()


def test_the_scale_grows_again_after_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(scaled, "PATIENCE", 2)
    ready = prepared(tmp_path, precision="fp32")
    plain, batches = ready.loop.passes.plain, [ready.batches.collate([0], ready.loop.pad_id)]
    wrapped = Scaled(plain)
    seen = [gradients(wrapped, batches)[0].facts[STATE] for _ in range(4)]
    assert seen == [FIRST, FIRST, 2 * FIRST, 2 * FIRST]


def test_gradients_that_were_there_are_added_to_and_not_divided(tmp_path):
    ready = prepared(tmp_path, precision="fp32")
    plain, batches = ready.loop.passes.plain, [ready.batches.collate([0], ready.loop.pad_id)]
    _, expected = gradients(plain, batches)
    for parameter in plain.parameters:
        parameter.grad = torch.ones_like(parameter)
    _, found = gradients(Scaled(plain), batches)
    assert all(torch.allclose(one, other + 1) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_in_fp16_learns_what_one_in_fp32_does(tmp_path, method):
    losses = {}
    for precision in ("fp32", "fp16"):
        given = make_recipe(tmp_path, method, max_steps=4, precision=precision)
        given["model"]["init"]["attention_dropout"] = 0.0
        summary = train(recipe.load(given), tmp_path / precision)
        assert summary.precision == precision
        losses[precision] = summary.losses
    assert losses["fp16"]["last"] == pytest.approx(losses["fp32"]["last"], abs=0.05)
    assert '"loss_scale": 65536.0' in (tmp_path / "fp16" / "log.jsonl").read_text()
    assert "loss_scale" not in (tmp_path / "fp32" / "log.jsonl").read_text()
