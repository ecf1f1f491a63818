"""AdaLoRA by hand: scale, importance, penalty, budget, and what pruning leaves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftkit.adaptation import attach, load_adapter, save_adapter
from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import convert
from peftkit.layout import Site
from peftkit.methods.adalora import AdaLoRA
from peftkit.models.tiny import tiny

IDS = torch.arange(3, 27).view(2, 12)


def train(adaptation, steps, total, first=0, optimizer=None):
    optimizer = optimizer or torch.optim.AdamW(adaptation.groups(1e-2, 0.0))
    for step in range(first, first + steps):
        loss = adaptation.model(input_ids=IDS, labels=IDS).loss + adaptation.penalty()
        loss.backward()
        adaptation.after_backward(step, total)
        optimizer.step()
        adaptation.after_step(step, total)
        optimizer.zero_grad()
    return optimizer


def test_one_observation_by_hand():
    adapter = AdaLoRA(rank=1, initial_rank=2, alpha=2.0).build(Site("linear", nn.Linear(1, 2), 1, 2))
    # The rank at the start is cut to 1, the most that [2, 1] allows; the scale keeps the 2 of the options.
    assert adapter.scale == pytest.approx(2.0 / (2 + 1e-5))
    with torch.no_grad():
        adapter.P.copy_(torch.tensor([[1.0], [3.0]]))
        adapter.l.fill_(2.0)
        adapter.Q.fill_(1.0)
    adapter.P.grad, adapter.l.grad, adapter.Q.grad = torch.full((2, 1), -2.0), torch.ones(1), torch.zeros(1, 1)
    adapter.observe(0.5, 0.5)
    # |w g|: P 2 and 6, l 2, Q 0; importance halves them, uncertainty is half the distance: P .5 and 1.5, l .5.
    assert adapter.importance_P.flatten().tolist() == [1.0, 3.0]
    assert adapter.uncertainty_P.flatten().tolist() == [0.5, 1.5]
    # l: 1 * .5; P: mean(1 * .5, 3 * 1.5) = 2.5
    assert adapter.score().tolist() == [3.0]
    # P'P - 1 = 9, QQ' - 1 = 0
    assert [term.item() for term in adapter.skew()] == [9.0, 0.0]
    assert AdaLoRA(orthogonality=0.5).penalty({"linear": adapter}).item() == pytest.approx(2.25)


def test_the_budget_is_the_cubic():
    method = AdaLoRA(warmup=0.1, final=0.3)
    # Of 100 steps: 48 triplets to step 10, 32 from step 70; half way (1/2)^3 of the 16 are left.
    budgets = [method.budget(done, 100, 48, 32) for done in (1, 10, 40, 70, 100)]
    assert budgets == [48, 48, 34, 32, 32]
    with pytest.raises(PeftkitError, match=r"warmup \(5\) and final \(5\) leave none of 10 steps"):
        AdaLoRA(warmup=5, final=5).budget(1, 10, 48, 32)


def test_exactly_the_target_is_left_and_the_rest_is_gone_from_the_saved_adapter(tmp_path):
    model = tiny("llama")
    adaptation = attach(model, [AdaLoRA(rank=4, interval=2)])
    train(adaptation, 20, 20)
    adapters = adaptation.parts[0].adapters.values()
    assert sum(int((adapter.l != 0).sum()) for adapter in adapters) == 4 * 4
    with torch.no_grad():
        before = model(IDS).logits
        adaptation.finish()
        assert (model(IDS).logits - before).abs().max() <= 1e-5
    assert {key.rsplit("/")[-1] for key in adaptation.state()} == {"P", "l", "Q"}
    assert sum(len(adapter.l) for adapter in adapters) == 16
    save_adapter(adaptation, tmp_path / "adapter", {"name": "tiny", "fingerprint": None})
    other = tiny("llama")
    load_adapter(other, tmp_path / "adapter", None)
    with torch.no_grad():
        assert torch.equal(other(IDS).logits, model(IDS).logits)


def test_a_resumed_run_allocates_as_an_unbroken_one():
    whole = attach(tiny("llama"), [AdaLoRA(rank=4, interval=3)])
    train(whole, 20, 20)
    first = attach(tiny("llama"), [AdaLoRA(rank=4, interval=3)])
    optimizer = train(first, 11, 20)
    second = attach(tiny("llama"), [AdaLoRA(rank=4, interval=3)], seed=9)
    second.load_state({key: tensor.clone() for key, tensor in first.state().items()})
    other = torch.optim.AdamW(second.groups(1e-2, 0.0))
    other.load_state_dict(optimizer.state_dict())
    train(second, 9, 20, 11, other)
    assert all(torch.equal(tensor, second.state()[key]) for key, tensor in whole.state().items())


def test_uneven_ranks_travel_to_hugging_face_peft(tmp_path):
    peft = pytest.importorskip("peft")
    import json

    from safetensors.torch import save_file

    model = tiny("llama")
    adaptation = attach(model, [AdaLoRA(rank=4)])
    with torch.no_grad():
        for adapter, rank in zip(adaptation.parts[0].adapters.values(), (6, 0, 3, 1), strict=True):
            adapter.l[:rank] = 0.7
            adapter.P.normal_()
    adaptation.finish()
    config, tensors = convert(adaptation.parts[0].method, adaptation.parts[0].adapters, model)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    theirs = peft.PeftModel.from_pretrained(tiny("llama"), str(tmp_path)).eval()
    with torch.no_grad():
        assert (theirs(IDS).logits - model(IDS).logits).abs().max() <= 1e-5
        assert (tiny("llama")(IDS).logits - model(IDS).logits).abs().max() > 0.1
