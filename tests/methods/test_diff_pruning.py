"""Diff pruning by hand: the hard-concrete gate, its expected count, and an exact projection."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from peftkit.adaptation import attach, load_adapter, save_adapter
from peftkit.layout import Site
from peftkit.methods.diff_pruning import DiffPruning
from peftkit.models.tiny import tiny

IDS = torch.arange(3, 27).view(2, 12)


def train(adaptation, total, steps, first=0, optimizer=None):
    optimizer = optimizer or torch.optim.AdamW(adaptation.groups(1e-2, 0.0))
    adaptation.model.train()
    for step in range(first, first + steps):
        (adaptation.model(input_ids=IDS, labels=IDS).loss + adaptation.penalty()).backward()
        optimizer.step()
        adaptation.after_step(step, total)
        optimizer.zero_grad()
    return optimizer


def test_the_gate_and_the_penalty_by_hand():
    adapter = DiffPruning().build(Site("linear", nn.Linear(2, 2), 2, 2)).eval()
    with torch.no_grad():
        adapter.a.copy_(torch.tensor([[0.0, -9.0], [9.0, math.log(3.0)]]))
        adapter.w.fill_(2.0)
    # sigmoid 1/2, 0, 1, 3/4 stretched to [-1.5, 1.5]: 0, -1.5, 1.5, 0.75, clipped to [0, 1]
    expected = torch.tensor([[0.0, 0.0], [2.0, 1.5]])
    assert torch.allclose(adapter.change(), expected, atol=1e-3)
    # P(z > 0) = sigmoid(a) as -l / r = 1
    open_gates = 0.5 + 1 / (1 + math.exp(9)) + 1 / (1 + math.exp(-9)) + 0.75
    assert adapter.expected().item() == pytest.approx(open_gates, rel=1e-5)


def test_the_drawn_gates_are_closed_as_often_as_the_penalty_says():
    torch.manual_seed(0)
    adapter = DiffPruning().build(Site("linear", nn.Linear(200, 200), 200, 200)).train()
    nn.init.constant_(adapter.a, 1.0)
    nn.init.ones_(adapter.w)
    opened = (adapter.change() > 0).float().mean().item()
    assert opened == pytest.approx(1 / (1 + math.exp(-1)), abs=0.01)


def test_the_projection_keeps_exactly_the_share_and_saves_it_alone(tmp_path):
    model = tiny("llama")
    method = DiffPruning(density=0.02, targets=("q", "v"), final=0.5)
    adaptation = attach(model, [method])
    train(adaptation, 6, 6)
    budget = 2 * (round(0.02 * 32 * 32) + round(0.02 * 16 * 32))
    adapters = list(adaptation.parts[0].adapters.values())
    assert sum(int(adapter.kept.sum()) for adapter in adapters) == budget
    model.eval()
    with torch.no_grad():
        before = model(IDS).logits
        adaptation.finish()
        assert torch.allclose(model(IDS).logits, before, atol=1e-5)
        assert (tiny("llama")(IDS).logits - before).abs().max() > 1e-3
    state = adaptation.state()
    assert {key.rsplit("/")[-1] for key in state} == {"sparse.indices", "sparse.values"}
    assert adaptation.trainable == budget
    assert sum(tensor.numel() * tensor.element_size() for tensor in state.values()) == 8 * budget
    save_adapter(adaptation, tmp_path / "adapter", {"name": "tiny", "fingerprint": None})
    other = tiny("llama")
    loaded = load_adapter(other, tmp_path / "adapter", None)
    with torch.no_grad():
        assert torch.equal(other(IDS).logits, model(IDS).logits)
        loaded.merge_()
        assert torch.allclose(other(IDS).logits, before, atol=1e-5)


@pytest.mark.parametrize("stop", [3, 7])
def test_a_resumed_run_keeps_the_same_entries(stop):
    method = DiffPruning(density=0.02, targets="q", final=0.5)
    torch.manual_seed(1)
    whole = attach(tiny("llama"), [method])
    train(whole, 10, 10)
    torch.manual_seed(1)
    first = attach(tiny("llama"), [method])
    optimizer = train(first, 10, stop)
    random = torch.get_rng_state()
    second = attach(tiny("llama"), [method])
    second.load_state({key: tensor.clone() for key, tensor in first.state().items()})
    other = torch.optim.AdamW(second.groups(1e-2, 0.0))
    other.load_state_dict(optimizer.state_dict())
    torch.set_rng_state(random)
    train(second, 10, 10 - stop, stop, other)
    assert all(torch.equal(tensor, second.state()[key]) for key, tensor in whole.state().items())


def test_gates_have_a_learning_rate_of_their_own():
    groups = attach(tiny("llama"), [DiffPruning(targets="q", structured=True)]).groups(1e-4, 0.0)
    rates = {key.rsplit("/")[-1]: group["lr"] for group in groups for key in group["keys"]}
    assert rates == {"w": 1e-4, "a": 0.1, "group": 0.1}
