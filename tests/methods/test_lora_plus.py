"""LoRA+ by hand: the learning rates of its groups, and that the ratio 1 is LoRA bit for bit."""

from __future__ import annotations

import torch

from peftkit.adaptation import attach
from peftkit.methods.lora import LoRA
from peftkit.methods.lora_plus import LoRAPlus
from peftkit.models.tiny import tiny

IDS = torch.arange(3, 27).view(2, 12)


def train(method):
    adaptation = attach(tiny("llama"), [method])
    groups = adaptation.groups(1e-2, 0.0)
    optimizer = torch.optim.AdamW(groups)
    parameters = [p for group in groups for p in group["params"]]
    for _ in range(4):
        adaptation.model(input_ids=IDS, labels=IDS).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return adaptation.state()


def test_the_ratio_one_is_lora_bit_for_bit():
    plus, plain, fast = train(LoRAPlus(ratio=1.0)), train(LoRA()), train(LoRAPlus())
    assert all(torch.equal(plus[key], plain[key]) for key in plain)
    assert any(not torch.equal(fast[key], plain[key]) for key in plain)


def test_b_and_biases_learn_faster_than_a():
    groups = attach(tiny("opt"), [LoRAPlus(ratio=8.0, bias="adapted")]).groups(1e-3, 0.0)
    rates = {key: group["lr"] for group in groups for key in group["keys"]}
    assert {rate for key, rate in rates.items() if key.endswith("/A")} == {1e-3}
    assert {rate for key, rate in rates.items() if key.endswith(("/B", "bias"))} == {8e-3}
    assert len(rates) == 2 * 2 * 3
