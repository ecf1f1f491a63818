"""Invariants 8 and 9: every method learns a small task, and equals Hugging Face peft where that has the method."""

from __future__ import annotations

import json

import pytest
import torch
from facts import facts
from safetensors.torch import save_file
from storages import stored
from subjects import SUBJECTS, attached, build, logits, loss, randomise, tokens

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft import load as load_hf_peft
from peftkit.export.hf_peft.converter import convert
from peftkit.method import METHODS
from peftkit.optim.build import Optimizers


@pytest.mark.costly
def test_it_learns(name, position, architecture, pace):
    torch.manual_seed(0)
    model, adaptation = attached(name, position, architecture)
    trial = facts(name).learns
    ids = tokens(4, 12, seed=3)
    optimizer = Optimizers(adaptation.groups(pace * trial.learning_rate, 0.0))
    first = None
    model.train()
    for index in range(trial.steps):
        adaptation.context.step = index
        value = loss(model, ids)
        first = first if first is not None else value.item()
        penalty = adaptation.penalty()
        (value if penalty is None else value + penalty).backward()
        adaptation.after_backward(index, trial.steps)
        optimizer.step()
        adaptation.after_step(index, trial.steps)
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        last = loss(model, ids).item()
    assert first > trial.loss
    assert last < trial.loss, f"loss {first:.3f} -> {last:.3f}"


def test_parity_with_hugging_face_peft_both_ways(name, position, architecture, tmp_path):
    peft = pytest.importorskip("peft")
    model, adaptation = attached(name, position, architecture)
    randomise(adaptation)
    try:
        config, tensors = convert(adaptation.chosen[0], adaptation.parts[0].adapters, model)
    except PeftkitError as error:
        pytest.skip(str(error))
    expected = logits(model)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    theirs = peft.PeftModel.from_pretrained(stored([name], architecture), str(tmp_path)).eval()
    # A soft prompt has logits there, which stand in front of those of the text.
    assert (logits(theirs)[:, -expected.shape[1] :] - expected).abs().max() <= 1e-5

    theirs.save_pretrained(str(tmp_path / "back"), save_embedding_layers=False)
    back = stored([name], architecture)
    load_hf_peft(tmp_path / "back", back)
    assert (logits(back) - expected).abs().max() <= 1e-5


def test_the_recipe_and_the_saved_options_build_the_same_method(name, position, architecture):
    method = build(name, position)
    assert type(method).from_options(method.options()) == method


def test_every_method_suits_an_architecture():
    assert {name for name, _, _ in SUBJECTS} == set(METHODS.names())
