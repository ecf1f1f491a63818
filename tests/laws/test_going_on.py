"""A saved adapter of every method is trained further: it begins where it ended, and takes all hooks of training."""

from __future__ import annotations

import pytest
import torch
from storages import stored
from subjects import build, logits, loss, tokens

from peftkit.adaptation import Adaptation, attach, describe_adapter, go_on, load_adapter, save_adapter
from peftkit.method import build_methods
from peftkit.optim.build import Optimizers

STEPS = 6


def train(model, adaptation: Adaptation) -> None:
    """Take all steps of a run of few, and finish it."""
    optimizer = Optimizers(adaptation.groups(1e-2, 0.0))
    model.train()
    for step in range(STEPS):
        value, penalty = loss(model, tokens(3, 8)), adaptation.penalty()
        (value if penalty is None else value + penalty).backward()
        adaptation.after_backward(step, STEPS)
        optimizer.step()
        adaptation.after_step(step, STEPS)
        optimizer.zero_grad()
    adaptation.finish()
    model.eval()


@pytest.mark.costly
def test_what_was_saved_is_trained_further(name, position, architecture, tmp_path):
    model = stored([name], architecture)
    base = {"name": architecture, "fingerprint": None}
    method = build(name, position)
    if getattr(method, "warmup", 0) >= STEPS:
        method = type(method).from_options({**method.options(), "warmup": 1})
    adaptation = attach(model, [method])
    adaptation.prepare([])
    train(model, adaptation)
    save_adapter(adaptation, tmp_path / "one", base)
    ended = logits(model)
    model = stored([name], architecture)
    described = describe_adapter(tmp_path / "one")["methods"]
    methods = build_methods([(each["name"], each["options"]) for each in described])
    further = attach(model, methods, seed=7, keep_base=False, loading=True)
    go_on(further, tmp_path / "one")
    assert torch.equal(logits(model), ended)
    train(model, further)
    assert not torch.equal(logits(model), ended)
    save_adapter(further, tmp_path / "two", base)
    fresh = stored([name], architecture)
    load_adapter(fresh, tmp_path / "two", None)
    assert torch.equal(logits(fresh), logits(model))
