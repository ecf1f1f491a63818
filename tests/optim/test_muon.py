"""Muon: torch's own steps for matrices, near U V' of the momentum, and AdamW for all that is none."""

from __future__ import annotations

import math

import pytest
import torch

from peftkit.adaptation import attach
from peftkit.methods.lora import LoRA
from peftkit.methods.prompt_tuning import PromptTuning
from peftkit.models.tiny import tiny
from peftkit.optim.build import Optimizers, state_bytes

BETAS, RATE, DECAY = (0.9, 0.95), 0.01, 0.3
SHAPES = [(12, 8), (8, 12), (9, 9)]


def drawn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(shapes):
    return [torch.nn.Parameter(drawn(shape, seed)) for seed, shape in enumerate(shapes)]


def build(tensors, **rest):
    keys = [str(index) for index in range(len(tensors))]
    group = {"params": tensors, "keys": keys, "lr": RATE, "weight_decay": DECAY, **rest}
    return Optimizers([group], betas=BETAS, eps=1e-6, default="muon")


def walk(optimizer, *lists, steps=3):
    for step in range(steps):
        for together in zip(*lists, strict=True):
            for tensor in together:
                tensor.grad = drawn(tensor.shape, 100 + step)
        for each in optimizer:
            each.step()


def test_matrices_are_stepped_by_torch_bit_for_bit():
    mine, theirs = parameters(SHAPES), parameters(SHAPES)
    plain = torch.optim.Muon(
        theirs, lr=RATE, weight_decay=DECAY, momentum=BETAS[0], adjust_lr_fn="match_rms_adamw", ns_steps=5
    )
    walk([build(mine), plain], mine, theirs)
    assert all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(("shapes", "rest"), [([(7,), (3, 4, 5)], {}), (SHAPES, {"multiplies": False})])
def test_all_else_is_stepped_by_adamw_bit_for_bit(shapes, rest):
    mine, theirs = parameters(shapes), parameters(shapes)
    plain = torch.optim.AdamW(theirs, lr=RATE, weight_decay=DECAY, betas=BETAS, eps=1e-6, foreach=False)
    walk([build(mine, **rest), plain], mine, theirs)
    assert all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_two_steps_are_near_those_of_the_singular_vectors(shape):
    (weight,) = tensors = parameters([shape])
    optimizer, momentum = build(tensors), torch.zeros(shape)
    for step in range(2):
        before, gradient = weight.detach().clone(), drawn(shape, 100 + step)
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = BETAS[0] * momentum + (1 - BETAS[0]) * gradient
        u, _, v = torch.linalg.svd(BETAS[0] * momentum + (1 - BETAS[0]) * gradient, full_matrices=False)
        moved = (before * (1 - RATE * DECAY) - weight.detach()) / (RATE * 0.2 * math.sqrt(max(shape)))
        inside = u.T @ moved @ v.T
        assert (inside - inside.diagonal().diag()).abs().max() < 0.1
        assert 0.6 < inside.diagonal().min() <= inside.diagonal().max() < 1.3
        assert (moved - u @ inside @ v).norm() < 0.1


def test_pairs_are_turned_and_rows_of_a_prompt_are_not():
    adaptation = attach(tiny("gpt2"), [LoRA(bias="all"), PromptTuning()])
    groups = adaptation.groups(1e-3, 0.0)
    optimizer = Optimizers(groups, default="muon")
    for _, parameter in adaptation.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = optimizer.state()
    turned = {key.rpartition("/")[0] for key in state if key.endswith("/momentum_buffer")}
    stepped = {key.rpartition("/")[0] for key in state if key.endswith("/exp_avg")}
    assert turned == {key for key, _ in adaptation.parameters() if key[-2:] in ("/A", "/B")}
    assert stepped == {key for key, _ in adaptation.parameters()} - turned
    assert any(key.endswith("/P") for key in stepped)
    sizes = {key: parameter.numel() for key, parameter in adaptation.parameters()}
    assert state_bytes(groups, "muon") == 4 * sum(sizes[key] for key in turned) + 8 * sum(sizes[key] for key in stepped)
