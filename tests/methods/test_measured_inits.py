"""Starts of low-rank pairs from the least part of the weight and from the data: each by its formula."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from peftkit.adaptation import attach
from peftkit.layers.probing import gradients, moments
from peftkit.methods.lora import LoRA
from peftkit.models.tiny import tiny
from peftkit.quantization.weight import dense

IDS = torch.randint(3, 60, (4, 10), generator=torch.Generator().manual_seed(2))
BATCH = SimpleNamespace(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS)
ROWS = [(ids[None], ids[None]) for ids in IDS]


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def started(init, **options):
    """Return an adaptation with its start, what its first site shows of a bare model, and that site's weight."""
    bare = attach(tiny("llama"), [LoRA(targets=("q",), **options)])
    adapters = bare.parts[0].adapters
    key = next(iter(adapters))
    seen = moments(bare.model, adapters, ROWS)[key], gradients(bare.model, adapters, ROWS)[key]
    adaptation = attach(tiny("llama"), [LoRA(init=init, targets=("q",), **options)])
    adaptation.prepare([BATCH])
    return adaptation, adaptation.parts[0].adapters[key], seen, dense(adapters[key].site.module).detach()


@pytest.mark.parametrize("init", ["milora", "eva", "corda", "lora-ga"])
def test_the_model_is_as_before_and_the_start_is_read_again(init):
    adaptation, *_ = started(init, rank=4)
    torch.testing.assert_close(logits(adaptation.model), logits(tiny("llama")), atol=1e-5, rtol=0)
    other = attach(tiny("llama"), [LoRA(init=init, targets=("q",), rank=4)], seed=9, loading=True)
    other.load_state({key: tensor.clone() for key, tensor in adaptation.state().items()})
    assert torch.equal(logits(other.model), logits(adaptation.model))


def test_milora_takes_the_smallest_singular_values():
    _, adapter, _, weight = started("milora", rank=4, alpha=8.0)
    values = torch.linalg.svdvals(adapter.delta(weight))[:4]
    torch.testing.assert_close(values, torch.linalg.svdvals(weight)[-4:], atol=1e-5, rtol=1e-4)


def test_eva_takes_the_directions_of_most_variance_in_order():
    _, adapter, (second, _), _ = started("eva", rank=4)
    energy = torch.stack([row @ second @ row for row in adapter.A])
    torch.testing.assert_close(energy, torch.linalg.eigvalsh(second).flip(0)[:4], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(adapter.A @ adapter.A.T, torch.eye(4), atol=1e-5, rtol=0)
    assert not adapter.B.any()


def test_corda_leaves_least_of_the_weight_on_the_inputs():
    _, adapter, (second, _), weight = started("corda", rank=4)
    damped = second + torch.eye(32) * second.diagonal().mean() * 0.01
    rest = torch.linalg.svdvals((weight - adapter.delta(weight)) @ damped)
    torch.testing.assert_close(rest[:8], torch.linalg.svdvals(weight @ damped)[4:12], atol=1e-3, rtol=1e-2)


def test_lora_ga_has_the_directions_of_the_gradient():
    _, adapter, (_, slope), _ = started("lora-ga", rank=4)
    left, _, right = torch.linalg.svd(slope)
    # 32^(1/4) / 4.
    torch.testing.assert_close((adapter.A @ right[:4].T).abs(), torch.eye(4) * 32**0.25 / 4, atol=1e-3, rtol=0)
    torch.testing.assert_close((left[:, 4:8].T @ adapter.B).abs(), torch.eye(4) * 32**0.25 / 4, atol=1e-3, rtol=0)


def test_without_an_example_the_start_is_drawn():
    adaptation = attach(tiny("llama"), [LoRA(init="corda")])
    adaptation.prepare([])
    assert torch.equal(logits(adaptation.model), logits(tiny("llama")))
    assert all(adapter.A.any() for adapter in adaptation.adapters())
