"""The rules around any method: updates in the band, terms by hand, rates by layer, and nothing of it in the file."""

from __future__ import annotations

import pytest
import torch
from subjects_of_methods import IDS, moved
from torch import nn

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.layers.dropped_out import drop_out
from peftkit.layout import Layout
from peftkit.methods.adaptive_lr_reg import AdaptiveLrReg
from peftkit.methods.controlled import skewness
from peftkit.methods.lora import LoRA
from peftkit.methods.pfeiffer_adapter import PfeifferAdapter
from peftkit.models.tiny import tiny


def stepped(method, rate):
    """Return the norms of each module's update over the module in one step, and the adaptation."""
    adaptation = moved(attach(tiny("llama"), [method]))
    groups = adaptation.groups(rate, 0.0)
    before = {key: p.detach().clone() for key, p in adaptation.parameters()}
    adaptation.model(input_ids=IDS).logits.square().sum().backward()
    adaptation.after_backward(0, 1)
    torch.optim.Adam([p for group in groups for p in group["params"]], lr=rate).step()
    adaptation.after_step(0, 1)
    modules = {}
    for key, parameter in adaptation.parameters():
        home = key.rpartition("." if "/own/" in key else "/")[0]
        modules.setdefault(home, []).append((parameter.detach(), before[key]))
    norm = lambda tensors: torch.cat([t.flatten() for t in tensors]).norm().item()  # noqa: E731
    return {n: norm([p - b for p, b in each]) / norm([b for _, b in each]) for n, each in modules.items()}, adaptation


@pytest.mark.parametrize("of", ["lora", "layernorm-tuning"])
@pytest.mark.parametrize(("band", "rate"), [((0.0, 0.01), 0.1), ((0.3, 0.5), 1e-4), ((0.0, 10.0), 1e-3)])
def test_each_update_is_brought_into_the_band(of, band, rate):
    method = AdaptiveLrReg(of=of, band=band, reg=())
    ratios, adaptation = stepped(method, rate)
    free, _ = stepped(AdaptiveLrReg(of=method.of, band=(0.0, 1e9), reg=()), rate)
    for name, ratio in ratios.items():
        assert ratio == pytest.approx(min(max(free[name], band[0]), band[1]), rel=1e-3), name
    told = adaptation.told()["update_norms"]
    assert len(told) == len(adaptation.parameters()) // (2 if of == "lora" else 1)
    assert all(value > 0 for value in told.values())


def test_terms_by_hand():
    adaptation = attach(tiny("llama"), [AdaptiveLrReg(reg=({"l2sp": 0.5}, {"orthogonal": 2.0}))])
    start = {key: p.detach().clone() for key, p in adaptation.parameters()}
    first = [p.detach() for key, p in adaptation.parameters() if key.endswith("/A")]
    assert adaptation.penalty().item() == pytest.approx(2 * torch.stack([skewness(a) for a in first]).mean().item())
    moved(adaptation)
    apart = sum((p - start[key]).square().sum().item() for key, p in adaptation.parameters())
    first = [p.detach() for key, p in adaptation.parameters() if key.endswith("/A")]
    expected = 0.5 * apart + 2 * torch.stack([skewness(a) for a in first]).mean().item()
    assert adaptation.penalty().item() == pytest.approx(expected, rel=1e-5)
    # Rows (1, 0), (0, 1), (1, 1): cosines 0, and twice the root of a half.
    assert skewness(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])).item() == pytest.approx(1 / 3)


def test_what_is_saved_is_the_method_s_own():
    adaptation = moved(attach(tiny("llama"), [AdaptiveLrReg(of={"lora": {"rank": 4}})]))
    assert any(key.endswith("A_start") for key in adaptation.state())
    adaptation.finish()
    assert adaptation.described == (LoRA(rank=4),)
    fresh = attach(tiny("llama"), [LoRA(rank=4)])
    fresh.load_state(adaptation.state())
    assert torch.equal(fresh.model(input_ids=IDS).logits, adaptation.model(input_ids=IDS).logits)


def test_rates_fall_towards_the_lower_layers():
    adaptation = attach(tiny("llama", num_hidden_layers=3), [AdaptiveLrReg(layer_decay=0.5)])
    rates = {key.split(".")[2]: g["lr"] for g in adaptation.groups(0.4, 0.0) for key in g["keys"]}
    assert rates == {"0": 0.1, "1": 0.2, "2": 0.4}


@pytest.mark.parametrize("method", [LoRA(targets="down", dropout=0.0), PfeifferAdapter()], ids=lambda m: m.name)
def test_dropout_drops_elements_of_the_change_alone(method):
    site = Layout(tiny("llama")).resolve("down")[0]
    linear = nn.Linear(site.inputs, site.outputs)
    adapter = drop_out(method.build(site), 0.5)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(50, site.inputs)
    adapter.eval()
    change = adapter(linear, x) - linear(x)
    adapter.train()
    dropped = adapter(linear, x) - linear(x)
    kept = dropped.abs() > 1e-6
    assert torch.allclose(dropped[kept], 2 * change[kept], atol=1e-4)
    assert kept.float().mean().item() == pytest.approx((change.abs() > 1e-6).float().mean().item() / 2, abs=0.05)


def test_two_passes_with_dropout_are_compared():
    (part,) = AdaptiveLrReg(reg=("dropout", {"agreement": 0.7})).parts()
    assert part.agreement() == 0.7


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reg": ["l2spp"]}, "'l2spp' is not a regulariser.*l2sp"),
        ({"reg": [{"dropout": 1.0}]}, "dropout is 1.0"),
        ({"band": [0.2, 0.1]}, "band: .* is empty"),
        ({"of": "lroa"}, "lora"),
        ({"of": "layernorm-tuning"}, "'layernorm-tuning' has no adapters that a reg could act on"),
        ({"of": "prompt-tuning", "reg": ["dropout"]}, "rows in the sequence"),
        ({"of": {"lora": {"init": "pissa"}}}, "which l2sp does not know"),
    ],
)
def test_what_makes_no_sense_is_refused(options, told):
    with pytest.raises(PeftkitError, match=told):
        attach(tiny("llama"), [AdaptiveLrReg.from_options(options)])
