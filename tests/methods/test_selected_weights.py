"""Methods that choose which weights are trained: each choice by hand, and what stays as it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from peftkit.adaptation import attach
from peftkit.layers.probing import gradients, moments
from peftkit.methods.child_tuning_d import ChildTuningD
from peftkit.methods.child_tuning_f import ChildTuningF
from peftkit.methods.diff_pruning import DiffPruning
from peftkit.methods.diff_pruning_structured import StructuredDiffPruning
from peftkit.methods.fish_dip import FishDip
from peftkit.methods.fishmask import FishMask
from peftkit.methods.pafi import PaFi
from peftkit.methods.s_bitfit import SBitFit
from peftkit.methods.sam_mask import SAMMask
from peftkit.methods.sensitivity_spt import SensitivitySPT
from peftkit.methods.u_bitfit import UBitFit
from peftkit.models.tiny import tiny

IDS = torch.randint(3, 60, (4, 10), generator=torch.Generator().manual_seed(2))
BATCH = SimpleNamespace(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS)


def indices(adaptation):
    return {key: adapter.indices.tolist() for key, adapter in adaptation.parts[0].adapters.items()}


def test_pafi_trains_the_smallest_weights_without_data():
    model = tiny("gpt2")
    adaptation = attach(model, [PaFi(density=0.02)])
    adaptation.prepare([])
    chosen, rest = [], []
    for adapter in adaptation.adapters():
        mask = torch.zeros(adapter.site.outputs * adapter.site.inputs, dtype=torch.bool)
        mask[adapter.indices.long()] = True
        sizes = adapter.weight().abs().flatten()
        chosen.append(sizes[mask])
        rest.append(sizes[~mask])
    assert torch.cat(chosen).max() <= torch.cat(rest).min()
    other = attach(tiny("gpt2"), [PaFi(density=0.02)])
    other.prepare([BATCH])
    assert indices(adaptation) == indices(other)


def test_the_child_network_is_that_of_fisher_information_at_its_density():
    child, mask = attach(tiny("llama"), [ChildTuningD(density=0.01)]), attach(tiny("llama"), [FishMask(density=0.01)])
    for adaptation in (child, mask):
        adaptation.prepare([BATCH])
    assert indices(child) == indices(mask)


def test_random_gradients_are_right_on_average_and_follow_from_the_step():
    method = ChildTuningF(keep=0.25, targets=("q",))
    adaptation = attach(tiny("llama"), [method])
    adapters = adaptation.parts[0].adapters
    adapter = next(iter(adapters.values()))

    def masked(step):
        adapter.w.grad = torch.ones_like(adapter.w)
        method.after_backward(adapters, step, 10)
        return adapter.w.grad.clone()

    seen = [masked(step) for step in range(40)]
    assert set(torch.stack(seen).unique().tolist()) == {0.0, 4.0}
    assert torch.stack(seen).mean() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(masked(3), seen[3])
    assert not torch.equal(seen[3], seen[4])


def test_the_second_order_choice_is_the_best_of_a_quadratic():
    """Over a separable sum of g w + h w^2 / 2 with one entry the best gain is g^2 / (2 h)."""
    adaptation = attach(tiny("llama"), [SAMMask(density=0.01, variant="paper")])
    adapters, method = adaptation.parts[0].adapters, adaptation.parts[0].method
    scores = method.scores(adaptation.model, adapters, [BATCH])
    rows = [(ids[None], ids[None]) for ids in IDS]
    mean = gradients(adaptation.model, adapters, rows)
    for key, adapter in adapters.items():
        each = [gradients(adaptation.model, {key: adapter}, [row])[key] for row in rows]
        torch.testing.assert_close(sum(each) / 4, mean[key], atol=1e-6, rtol=1e-4)
        curvature = sum(g.square() for g in each) / 4
        torch.testing.assert_close(scores[key], mean[key].square() / (curvature + 1e-12), atol=1e-4, rtol=1e-3)
        break


def test_gradients_and_moments_are_those_of_the_weight():
    model = tiny("gpt2")
    adaptation = attach(model, [ChildTuningF(targets="linear")])
    adapters = adaptation.parts[0].adapters
    rows = [(ids[None], ids[None]) for ids in IDS[:2]]
    found = gradients(model, adapters, rows)
    total = 0
    for ids in IDS[:2]:
        logits = model(ids[None]).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum") / 2
    expected = torch.autograd.grad(total, [adapter.w for adapter in adapters.values()])
    for key, gradient in zip(adapters, expected, strict=True):
        torch.testing.assert_close(found[key], gradient, atol=1e-5, rtol=1e-4)
    seen = moments(model, adapters, rows)
    assert all(torch.linalg.eigvalsh(matrix).min() > -1e-5 for matrix in seen.values())
    assert seen.keys() == adapters.keys()


def test_the_hardest_examples_choose_anew_and_what_changed_is_saved():
    method = FishDip(density=0.01, samples=4, hardest=2, longest=16, interval=2, targets=("q", "v"))
    adaptation = attach(tiny("llama"), [method])
    adaptation.prepare([BATCH])
    part = adaptation.parts[0]
    adapters, pool = part.adapters, part.shared
    losses = {tuple(ids[0].tolist()): None for ids, _ in pool.hardest(4)}
    assert list(losses)[:2] == [tuple(ids[0].tolist()) for ids, _ in pool.hardest(2)]
    first = {key: adapter.kept.clone() for key, adapter in adapters.items()}
    assert sum(int(mask.sum()) for mask in first.values()) == 2 * (10 + 5)
    for adapter in adapters.values():
        adapter.w.grad = torch.ones_like(adapter.w)
    method.after_backward(adapters, 0, 10)
    assert all(torch.equal(adapter.w.grad.bool(), first[key]) for key, adapter in adapters.items())
    with torch.no_grad():
        for key, adapter in adapters.items():
            adapter.w.add_(first[key] * 0.5)
    method.after_step(adapters, 1, 10)
    assert any(not torch.equal(adapter.kept, first[key]) for key, adapter in adapters.items())
    adaptation.finish()
    assert sum(len(adapter.sparse.values) for adapter in adapters.values()) == 30
    assert not [key for key in adaptation.state() if "shared" in key]


def test_a_matrix_with_many_sensitive_weights_gets_a_pair():
    method = SensitivitySPT(density=0.05, rank=2, targets="linear")
    adaptation = attach(tiny("llama"), [method])
    adaptation.prepare([BATCH])
    adapters = adaptation.parts[0].adapters.values()
    pairs = [adapter for adapter in adapters if adapter.is_pair]
    assert pairs
    assert len(pairs) < len(adapters)
    # A fifth of 2 (in + out) sensitive entries is the least for a pair.
    for adapter in adapters:
        if not adapter.is_pair:
            assert 5 * len(adapter.values) < 2 * (adapter.site.inputs + adapter.site.outputs)


def test_gates_choose_whole_biases_or_their_elements():
    vectors, elements = attach(tiny("gpt2"), [SBitFit(density=0.25)]), attach(tiny("gpt2"), [UBitFit(density=0.25)])
    biases = sum(adapter.site.outputs for adapter in vectors.adapters())
    for adaptation in (vectors, elements):
        with torch.no_grad():
            for number, adapter in enumerate(adaptation.adapters()):
                adapter.a.copy_(torch.arange(len(adapter.a)) * 0.01 + (number % 3))
                adapter.v.fill_(1.0)
        adaptation.finish()
    kept = [len(adapter.places) for adapter in vectors.adapters()]
    assert all(count in (0, adapter.site.outputs) for count, adapter in zip(kept, vectors.adapters(), strict=True))
    assert 0 < sum(kept) <= 0.25 * biases
    assert sum(len(adapter.places) for adapter in elements.adapters()) == biases // 4


def test_the_last_choice_of_diff_pruning_draws_nothing():
    """Two seeds of the gates keep the same entries of the same changes."""
    kept = []
    for seed in (1, 2):
        method = StructuredDiffPruning(density=0.05)
        adaptation = attach(tiny("llama").train(), [method])
        with torch.no_grad():
            for adapter in adaptation.adapters():
                adapter.w.normal_(generator=torch.Generator().manual_seed(7))
                adapter.a.normal_(generator=torch.Generator().manual_seed(8))
        torch.manual_seed(seed)
        method.project(adaptation.parts[0].adapters)
        assert all(adapter.training for adapter in adaptation.adapters())
        kept.append([adapter.kept for adapter in adaptation.adapters()])
    assert all(torch.equal(one, other) for one, other in zip(*kept, strict=True))
    assert DiffPruning().structured is False
