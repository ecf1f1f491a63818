"""SparseAdapter: the budget to the entry, the scores by their definitions, and what is left alone trained and saved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from subjects_of_methods import IDS

from peftkit.adaptation import attach
from peftkit.data.batches import collate
from peftkit.data.encode import Encoded
from peftkit.errors import PeftkitError
from peftkit.layers.pruned import erdos_renyi, kept
from peftkit.methods.sparseadapter import SparseAdapter, along
from peftkit.models.tiny import tiny

ROWS = [Encoded(ids, [-100, *ids[1:]]) for ids in ([5, 6, 7, 8], [5, 6, 9], [11, 12, 13, 14, 15])]
SMALL = {"pfeiffer-adapter": {"bottleneck": 10, "activation": "tanh"}}
SCORES = ("snip", "grasp", "magnitude", "erdos-renyi", "random")


def prepared(**options):
    adaptation = attach(tiny("llama"), [SparseAdapter(of=SMALL, **options)])
    torch.manual_seed(0)
    adaptation.prepare([collate(ROWS, 0)])
    return adaptation


@pytest.mark.parametrize("score", SCORES)
def test_as_many_entries_stay_as_the_budget_says_and_are_all_that_is_saved(score):
    adaptation = prepared(score=score, density=0.2)
    state = adaptation.state()
    # Two layers of D [10, 32] and U [32, 10]: a fifth of 1,280 is 256; beside them 10 + 32 biases a layer.
    values = {key: tensor for key, tensor in state.items() if f"{key}_places" in state}
    assert sum(tensor.numel() for tensor in values.values()) == 256
    assert len(values) == 4
    assert adaptation.trainable == 256 + 2 * 42
    assert sum(tensor.numel() for tensor in state.values()) == 2 * 256 + 2 * 42
    assert torch.equal(adaptation.model(input_ids=IDS).logits, tiny("llama")(input_ids=IDS).logits)
    # In a fresh model the same matrices run.
    fresh = attach(tiny("llama"), [SparseAdapter(of=SMALL, score=score)], seed=5, loading=True)
    with torch.no_grad():
        for tensor in values.values():
            tensor.normal_()
    fresh.load_state(adaptation.state())
    assert torch.equal(fresh.model(input_ids=IDS).logits, adaptation.model(input_ids=IDS).logits)


def plain_gradient(adaptation, probes, create_graph=False):
    total = 0
    for row in ROWS:
        logits = adaptation.model(input_ids=torch.tensor([row.ids])).logits[0, :-1]
        total = total + F.cross_entropy(logits, torch.tensor(row.ids[1:]), reduction="sum") / len(ROWS)
    return torch.autograd.grad(total, probes, create_graph=create_graph)


@pytest.mark.parametrize("score", ["snip", "grasp", "magnitude"])
def test_the_entries_are_those_of_the_largest_scores_by_definition(score):
    chosen = prepared(score=score).state()
    adaptation = attach(tiny("llama", attn_implementation="eager"), [SparseAdapter(of=SMALL)])
    torch.manual_seed(0)
    contexts = [adapter.probed() for adapter in adaptation.adapters()]
    opened = [context.__enter__() for context in contexts]
    probes = [probe for each in opened for probe in each.values()]
    slopes = plain_gradient(adaptation, probes, create_graph=True)
    if score == "grasp":
        # H g: the gradient of g' g with one g held.
        product = sum((slope * slope.detach()).sum() for slope in slopes)
        slopes = torch.autograd.grad(product, probes)
    scores = [
        {"snip": (w * g).abs(), "grasp": w * g, "magnitude": w.abs()}[score].detach()
        for w, g in zip(probes, slopes, strict=True)
    ]
    flat = torch.cat([one.flatten() for one in scores])
    expected = set(flat.topk(256).indices.tolist())
    found, start = set(), 0
    for key, tensor in chosen.items():
        if key.endswith("_places"):
            found |= {start + place for place in tensor.tolist()}
            start += 320
    # The difference of gradients knows H g to a thousandth: entries at the border may change places.
    assert len(found & expected) >= (250 if score == "grasp" else 256)


def test_the_difference_of_gradients_is_the_hessian_times_the_gradient():
    hessian = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    weight = torch.tensor([1.0, -1.0], requires_grad=True)
    slope = hessian @ weight.detach()
    (found,) = along([weight], [slope], lambda: [hessian @ weight.detach()])
    assert torch.allclose(found, hessian @ slope, atol=1e-2)
    assert torch.allclose(weight, torch.tensor([1.0, -1.0]), atol=1e-6)


def test_erdos_renyi_gives_small_matrices_a_larger_share():
    shapes = {"wide": torch.Size((4, 100)), "square": torch.Size((20, 20)), "tiny": torch.Size((2, 3))}
    counts = erdos_renyi(shapes, 161)
    # Rows + columns are 104, 40 and 5; "tiny" has 6 entries: 155 are left at 1.07 a row, above it none.
    assert sum(counts.values()) == 161
    assert counts["wide"] / 104 == pytest.approx(counts["square"] / 40, rel=0.03)
    assert erdos_renyi(shapes, 400)["tiny"] == 6


def test_each_matrix_keeps_its_largest_entry():
    scores = {"a": torch.tensor([5.0, 4.0, 3.0]), "b": torch.tensor([0.1, 0.2])}
    masks = kept(scores, 3)
    assert masks["a"].tolist() == [True, True, False]
    assert masks["b"].tolist() == [False, True]


def test_large_sparse_has_as_many_entries_as_the_small_adapter_has():
    adaptation = prepared(density=0.5, large=True)
    values = [tensor for key, tensor in adaptation.state().items() if f"{key}_places" in adaptation.state()]
    assert sum(tensor.numel() for tensor in values) == 2 * 2 * 10 * 32
    assert {adapter.shapes["D"] for adapter in adaptation.adapters()} == {torch.Size((20, 32))}


def test_what_does_not_fit_is_refused():
    with pytest.raises(PeftkitError, match=r"'ssf' has no size that could be larger"):
        SparseAdapter(of="ssf", large=True)
    adaptation = prepared()
    state = adaptation.state()
    key = next(key for key in state if key.endswith("D_places"))
    with pytest.raises(PeftkitError, match=r"places beyond its 320 numbers"):
        adaptation.load_state({**state, key: state[key] + 320})
