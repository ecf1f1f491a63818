"""SoRA by hand: its formula, the proximal step, and what is left in the saved adapter."""

from __future__ import annotations

import torch
from torch import nn

from peftkit.adaptation import attach, load_adapter, save_adapter
from peftkit.layout import Site
from peftkit.methods.sora import SoRA
from peftkit.models.tiny import tiny

IDS = torch.arange(3, 27).view(2, 12)


def test_the_formula_and_the_proximal_step_by_hand():
    linear = nn.Linear(2, 2, bias=False)
    method = SoRA(rank=2, alpha=2.0, threshold=0.25)
    adapter = method.build(Site("linear", linear, 2, 2))
    with torch.no_grad():
        adapter.A.copy_(torch.eye(2))
        adapter.B.copy_(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        adapter.g.copy_(torch.tensor([-1.0, 0.25]))
    # s = 1; diag(1, 3) diag(-1, 0.25)
    assert adapter.delta(linear.weight).tolist() == [[-1.0, 0.0], [0.0, 0.75]]
    method.after_step({"linear": adapter}, 0, 1)
    assert adapter.g.tolist() == [-0.75, 0.0]


def test_closed_gates_are_gone_from_the_saved_adapter_and_nothing_changes(tmp_path):
    model = tiny("llama")
    adaptation = attach(model, [SoRA(rank=4, targets=("q", "v"))])
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.normal_(0, 0.3)
        adapters = list(adaptation.parts[0].adapters.values())
        adapters[0].g.zero_()
        adapters[1].g[1:3] = 0
        before = model(IDS).logits
        adaptation.finish()
        assert (model(IDS).logits - before).abs().max() <= 1e-5
    assert [len(adapter.g) for adapter in adapters] == [0, 2, 4, 4]
    save_adapter(adaptation, tmp_path / "adapter", {"name": "tiny", "fingerprint": None})
    other = tiny("llama")
    loaded = load_adapter(other, tmp_path / "adapter", None)
    # q of the two layers, then v: [32, 32] at rank 0 and 2, [16, 32] at rank 4.
    assert loaded.trainable == 2 * (64 + 1) + 2 * 4 * (48 + 1)
    with torch.no_grad():
        assert torch.equal(other(IDS).logits, model(IDS).logits)
        loaded.merge_()
        assert (other(IDS).logits - before).abs().max() <= 1e-5
