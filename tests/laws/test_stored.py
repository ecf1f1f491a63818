"""What is derived of a method's size is what the saved file holds once training has ended."""

from __future__ import annotations

import pytest
import torch
from facts import facts
from safetensors.torch import load_file
from subjects import attached, loss, randomise, tokens

from peftkit.adaptation import TENSORS, count_stored, save_adapter
from peftkit.optim.build import Optimizers

STEPS = 20


@pytest.mark.costly
def test_the_saved_file_holds_the_numbers_that_are_stated(name, position, architecture, tmp_path):
    torch.manual_seed(0)
    model, adaptation = attached(name, position, architecture)
    method, layout = adaptation.chosen[0], adaptation.layout
    ids = tokens(3, 8, seed=5)
    adaptation.prepare([])
    randomise(adaptation)
    optimizer = Optimizers(adaptation.groups(1e-2, 0.0))
    model.train()
    for index in range(STEPS):
        value, penalty = loss(model, ids), adaptation.penalty()
        (value if penalty is None else value + penalty).backward()
        adaptation.after_backward(index, STEPS)
        optimizer.step()
        adaptation.after_step(index, STEPS)
        optimizer.zero_grad()
    adaptation.finish()
    save_adapter(adaptation, tmp_path / "adapter", {"name": architecture})
    saved = sum(tensor.numel() for tensor in load_file(tmp_path / "adapter" / TENSORS).values())
    assert saved > 0
    stated = count_stored(method, layout)
    assert saved <= stated if facts(name).stored_at_most else saved == stated
