"""Lists of methods: random pairs and triples attach, train, save and load together, and conflicts are refused."""

from __future__ import annotations

import random

import pytest
import torch
from subjects import logits, loss, randomise, tokens

from peftkit import adapt
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.optim.build import Optimizers


def drawn(size: int, count: int) -> list[tuple[str, ...]]:
    """Draw combinations that are compatible on a Llama, the same ones every time."""
    generator = random.Random(size)
    names, found = METHODS.names(), []
    while len(found) < count:
        chosen = tuple(generator.sample(names, size))
        try:
            adapt.check(tiny("llama"), build(chosen))
        except PeftkitError:
            continue
        found.append(chosen)
    return found


def build(names: tuple[str, ...]):
    return [METHODS[name].from_options({}) for name in names]


COMBINATIONS = [*drawn(2, 10), *drawn(3, 3)]


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_parts_train_save_and_load_together(names, tmp_path):
    model = tiny("llama")
    adaptation = adapt.attach(model, build(names))
    assert adaptation.trainable == sum(method.count(adaptation.layout) for method in adaptation.methods)
    optimizer = Optimizers(adaptation.groups(1e-3, 0.0))
    before = {key: parameter.detach().clone() for key, parameter in adaptation.parameters()}
    model.train()
    for step in range(3):
        loss(model, tokens(3, 8)).backward()
        adaptation.after_backward(step, 3)
        optimizer.step()
        adaptation.after_step(step, 3)
        optimizer.zero_grad()
    model.eval()
    moved = {key.split("/")[0] for key, p in adaptation.parameters() if not torch.equal(p, before[key])}
    assert moved == {str(position) for position in range(len(names))}
    expected = logits(model)
    adapt.save(adaptation, tmp_path / "adapter", {"name": "llama", "fingerprint": None})
    fresh = tiny("llama")
    adapt.load(fresh, tmp_path / "adapter", None)
    assert (logits(fresh) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("names", [("lora", "prompt-tuning"), ("lora", "serial-adapter")], ids="+".join)
def test_each_part_keeps_its_own_learning_rate(names):
    adaptation = adapt.attach(tiny("llama"), build(names))
    rates = {group["lr"] for group in adaptation.groups(None, 0.0)}
    assert rates == {METHODS[name].default_learning_rate for name in names}


def test_two_low_rank_methods_merge_together():
    model = tiny("llama")
    adaptation = adapt.attach(model, build(("lora", "ia3")))
    randomise(adaptation)
    expected = logits(model)
    adaptation.merge_()
    assert (logits(model) - expected).abs().max() <= 1e-5


def test_two_methods_that_own_one_weight_are_refused():
    with pytest.raises(PeftkitError, match="'full' and 'layernorm-tuning' both train"):
        adapt.check(tiny("llama"), build(("full", "layernorm-tuning")))
