"""Invariants 4 and 6: merging and its undoing, switching off, removing, several adaptations of one model."""

from __future__ import annotations

import pytest
import torch
from storages import stored
from subjects import attached, build, keyed, logits, randomise, tokens, unchanged

from peftkit.adaptation import activate, attach, route
from peftkit.errors import PeftkitError


def test_merged_equals_adapted(name, position, architecture):
    base = logits(stored([name], architecture))
    model, adaptation = attached(name, position, architecture)
    randomise(adaptation)
    adapted = logits(model)
    if not adaptation.chosen[0].mergeable:
        with pytest.raises(PeftkitError, match="cannot be merged"):
            adaptation.merge_()
        assert torch.equal(logits(model), adapted)
        return
    with unchanged(model):
        adaptation.merge_()
        assert (logits(model) - adapted).abs().max() <= 1e-5
        assert (logits(model) - base).abs().max() > 1e-3
        adaptation.unmerge_()
    assert torch.equal(logits(model), adapted)


@pytest.mark.costly
def test_an_adapter_that_is_not_finite_is_not_merged(name, position, architecture):
    model, adaptation = attached(name, position, architecture)
    if not adaptation.chosen[0].mergeable:
        pytest.skip(f"{name} does not merge")
    key, parameter = adaptation.parameters()[0]
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            parameter.view(-1)[0] = value
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(PeftkitError, match="NaN or infinity"):
            adaptation.merge_()
        after = model.state_dict()
        assert all(torch.equal(v.nan_to_num(7.0), after[k].nan_to_num(7.0)) for k, v in before.items()), key


def test_disabled_and_removed_are_the_base(name, position, architecture):
    model = stored([name], architecture)
    base, keys, classes = logits(model), list(model.state_dict()), [type(m) for m in model.modules()]
    trainable = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    adaptation = attach(model, [build(name, position)])
    randomise(adaptation)
    adapted = logits(model)
    with adaptation.disabled():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), adapted)
    adaptation.remove()
    assert torch.equal(logits(model), base)
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == classes
    assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == trainable


@pytest.mark.costly
def test_switching_between_two_is_exact(name, position, architecture):
    alone = {}
    for seed, label in enumerate("ab"):
        model, adaptation = attached(name, position, architecture)
        randomise(adaptation, seed)
        alone[label] = logits(model)
    base = logits(stored([name], architecture))
    model = stored([name], architecture)
    for seed, label in enumerate("ab"):
        randomise(attach(model, [build(name, position)], name=label), seed)
    for label in ("a", "b", "a"):
        activate(model, label)
        assert torch.equal(logits(model), alone[label])
    activate(model, None)
    assert torch.equal(logits(model), base)


def test_two_in_one_batch_equal_each_alone(name, position, architecture):
    model = stored([name], architecture)
    first, second = (attach(model, [build(name, position)], name=label) for label in "ab")
    randomise(second, 2)
    ids = tokens(3)
    expected = [logits(model, ids)]
    activate(model, "a")
    randomise(first, 1)
    expected.append(logits(model, ids))
    activate(model, None)
    expected.append(logits(model, ids))
    if any(part.changed for part in first.parts):
        with pytest.raises(PeftkitError, match="cannot share a batch"):
            route(model, ["a", "b", None])
        return
    soft = list(first.soft_ids)
    count = 2 if soft else 3
    prompted = keyed(torch.cat([torch.tensor([soft] * count, dtype=torch.long), ids[:count]], 1), first.keys)
    with route(model, ["b", "a", None][:count]), torch.no_grad():
        mixed = model(input_ids=prompted).logits[:, len(soft) :]
    for row in range(count):
        assert (mixed[row] - expected[row][row]).abs().max() <= 1e-5
