"""ProPETL: all entries are one shared module, masks are exact and bits at last, gradients go straight through."""

from __future__ import annotations

import pytest
import torch
from subjects_of_methods import IDS, moved

from peftkit.adaptation import attach, count_stored
from peftkit.layers.masked import packed, unpacked
from peftkit.layout import Layout
from peftkit.methods.pfeiffer_adapter import PfeifferAdapter
from peftkit.methods.propetl import ProPETL
from peftkit.models.tiny import tiny

SMALL = {"pfeiffer-adapter": {"bottleneck": 10}}


def test_with_all_entries_it_is_one_module_shared_by_all_layers():
    adaptation = moved(attach(tiny("llama"), [ProPETL(of=SMALL, density=1.0)]))
    state = adaptation.state()
    twin = attach(tiny("llama"), [PfeifferAdapter(bottleneck=10)])
    shapes = {"D": "10x32", "b": "10", "U": "32x10", "c": "32"}
    twin.load_state({key: state[f"0/shared/{key[-1]}_{shapes[key[-1]]}"] for key in twin.state()})
    assert torch.allclose(adaptation.model(input_ids=IDS).logits, twin.model(input_ids=IDS).logits, atol=1e-6)


def test_the_mask_has_its_share_of_ones_at_the_largest_scores_and_their_gradient_is_straight():
    adaptation = moved(attach(tiny("llama"), [ProPETL(of=SMALL, density=0.3)]))
    adapter = next(adaptation.adapters()).train()
    mask, scores = adapter.mask("D"), adapter.get_parameter("D_scores")
    assert (int(mask.sum()), set(mask.flatten().tolist())) == (96, {0.0, 1.0})
    assert scores.abs()[mask > 0].min() >= scores.abs()[mask == 0].max()
    prototype = adapter.shared.get_parameter("D_10x32")
    weight = (prototype * mask).detach().requires_grad_()
    x = torch.randn(5, 32)
    for matrix in (weight, prototype * mask):
        (torch.relu(x @ matrix.T)).square().sum().backward()
    assert torch.allclose(scores.grad, weight.grad * prototype * scores.sign(), atol=1e-4)
    assert torch.allclose(prototype.grad, weight.grad * mask, atol=1e-4)


def test_what_is_saved_is_the_prototype_and_a_bit_for_each_entry():
    method = ProPETL(of=SMALL)
    adaptation = moved(attach(tiny("llama"), [method]))
    logits = adaptation.model(input_ids=IDS).logits
    adaptation.finish()
    assert torch.equal(adaptation.model(input_ids=IDS).logits, logits)
    state = adaptation.state()
    # One adapter of 2 * 320 + 42 numbers, and for each of two layers 2 * 320 bits.
    assert sum(tensor.nbytes for tensor in state.values()) == 4 * (640 + 42) + 2 * 640 // 8
    assert sum(tensor.numel() for tensor in state.values()) == count_stored(method, Layout(tiny("llama")))
    fresh = attach(tiny("llama"), list(adaptation.chosen), seed=3, loading=True)
    fresh.load_state(state)
    assert torch.equal(fresh.model(input_ids=IDS).logits, logits)


@pytest.mark.parametrize("shape", [(3, 5), (8, 2)])
def test_bits_are_the_mask(shape):
    mask = torch.rand(shape) > 0.5
    bits = packed(mask)
    assert len(bits) == -(-mask.numel() // 8)
    assert torch.equal(unpacked(bits, mask.shape), mask.float())


def test_maps_of_other_shapes_have_another_prototype():
    adaptation = attach(tiny("llama"), [ProPETL(of={"lora": {"rank": 4, "targets": ["q", "v"]}})])
    shared = {key for key in adaptation.state() if key.startswith("0/shared/")}
    # q [32, 32] and v [16, 32] have one A and two B.
    assert shared == {"0/shared/A_4x32", "0/shared/B_32x4", "0/shared/B_16x4"}
