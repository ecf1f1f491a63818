"""Lists of methods: random pairs and triples train, save, load, switch and merge together; conflicts are refused.

That they resume bit for bit is held in tests/training/test_session.py, with the loop and the checkpoints of a run.
"""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from combinations import COMBINATIONS, MERGING, build, decoder, refusal
from draw import some, whole
from subjects import logits, loss, randomise, tokens

from peftkit.adaptation import attach, count_trained, load_adapter, save_adapter
from peftkit.errors import PeftkitError
from peftkit.method import METHODS, expand
from peftkit.methods.lora import LoRA
from peftkit.methods.mam_adapter import MamAdapter
from peftkit.optim.build import Optimizers


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_parts_train_save_and_load_together(names, tmp_path):
    model = decoder(names)
    adaptation = attach(model, build(names))
    assert adaptation.trainable == sum(count_trained(method, adaptation.layout) for method in build(names))
    optimizer = Optimizers(adaptation.groups(1e-3, 0.0))
    before = {key: parameter.detach().clone() for key, parameter in adaptation.parameters()}
    model.train()
    for step in range(3):
        loss(model, tokens(3, 8)).backward()
        adaptation.after_backward(step, 3)
        optimizer.step()
        adaptation.after_step(step, 3)
        optimizer.zero_grad()
    model.eval()
    moved = {key.split("/")[0] for key, p in adaptation.parameters() if not torch.equal(p, before[key])}
    assert moved == {str(position) for position, part in enumerate(adaptation.parts) if any(part.tensors())}
    adaptation.finish()
    expected = logits(model)
    save_adapter(adaptation, tmp_path / "adapter", {"name": "llama", "fingerprint": None})
    fresh = decoder(names)
    loaded = load_adapter(fresh, tmp_path / "adapter", None)
    assert loaded.trainable == adaptation.trainable
    assert torch.equal(logits(fresh), expected)


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_with_a_part_switched_off_the_others_are_as_attached_alone(names):
    model = decoder(names)
    adaptation = attach(model, build(names))
    randomise(adaptation)
    together, soft = logits(model), adaptation.soft_ids
    parts = expand(build(names))
    for off in range(len(parts)):
        kept = [position for position in range(len(parts)) if position != off]
        alone = decoder(names)
        attach(alone, [parts[position] for position in kept]).load_state(moved(adaptation.state(), kept))
        with adaptation.without([off]):
            assert torch.equal(logits(model), logits(alone)), parts[off].name
            assert len(adaptation.soft_ids) == len(alone.__dict__["_peftkit"].adaptations["default"].soft_ids)
        assert adaptation.soft_ids == soft
        assert torch.equal(logits(model), together)
        acts = adaptation.parts[off].lasts
        assert torch.equal(logits(alone), together) != acts, f"{parts[off].name} does {'nothing' if acts else 'more'}"


def moved(state, kept):
    """The tensors of the parts at the positions `kept`, at the positions that they have alone."""
    split = ((key.partition("/"), tensor) for key, tensor in state.items())
    return {f"{kept.index(int(at))}/{key}": tensor for (at, _, key), tensor in split if int(at) in kept}


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_with_every_part_switched_off_it_is_the_base(names):
    model = decoder(names)
    base = logits(model)
    adaptation = attach(model, build(names))
    randomise(adaptation)
    with adaptation.without(range(len(adaptation.parts))):
        assert torch.equal(logits(model), base)
    with adaptation.without([0]), adaptation.disabled():
        assert torch.equal(logits(model), base)
    assert not torch.equal(logits(model), base)


@pytest.mark.parametrize("names", MERGING, ids="+".join)
def test_parts_that_merge_are_merged_together(names):
    # In double precision, where the order of sums hides nothing; the model's norms round to single precision.
    model = decoder(names).double()
    base = logits(model)
    adaptation = attach(model, build(names))
    randomise(adaptation)
    expected = logits(model.double())
    adaptation.merge_()
    assert (logits(model) - expected).abs().max() <= 2e-6
    assert (logits(model) - base).abs().max() > 1e-3
    with pytest.raises(PeftkitError, match="merged adaptation cannot be switched off"), adaptation.without([0]):
        pass
    adaptation.unmerge_()
    assert torch.equal(logits(model), expected)


def test_a_part_that_does_not_merge_keeps_all_from_merging():
    model = decoder()
    adaptation = attach(model, build(("lora", "serial-adapter")))
    randomise(adaptation)
    expected = logits(model)
    with pytest.raises(PeftkitError, match="'serial-adapter' cannot be merged"):
        adaptation.merge_()
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    "names", [("lora", "prompt-tuning"), ("lora", "serial-adapter"), ("lora", "mam-adapter")], ids="+".join
)
def test_each_part_keeps_its_own_learning_rate(names):
    adaptation = attach(decoder(), build(names))
    rates = {group["lr"] for group in adaptation.groups(None, 0.0)}
    assert rates == {method.default_learning_rate for method in expand(build(names))}


def test_a_named_combination_is_its_parts_and_sets_their_rate():
    combination = MamAdapter(prefix_length=3, projection=None, bottleneck=8, learning_rate=0.5)
    model, other = decoder(), decoder()
    adaptation = attach(model, [LoRA(), combination])
    assert adaptation.chosen == (LoRA(), combination)
    assert adaptation.methods == (LoRA(), *combination.parts())
    assert {group["lr"] for group in adaptation.groups(1e-3, 0.0)} == {1e-3, 0.5}
    listed = attach(other, [LoRA(), *combination.parts()])
    assert all(torch.equal(tensor, listed.state()[key]) for key, tensor in adaptation.state().items())
    assert torch.equal(logits(model), logits(other))


def test_pairs_are_refused_for_a_weight_that_both_train_alone():
    """Of all pairs on a dense model, each method with itself included; the reason names both and the weight."""
    reasons = {}
    names = [name for name, cls in METHODS.items() if cls.needs is None]
    if not whole():
        names = sorted({"full", "layernorm-tuning", *some("pairs", names, 24)})
    for pair in itertools.combinations_with_replacement(names, 2):
        reason = refusal(pair)
        if reason is not None:
            reasons[pair] = reason
    assert ("full", "layernorm-tuning") in reasons
    own = dict(decoder().named_parameters())
    for pair, reason in reasons.items():
        found = re.fullmatch(r"the methods '(.+)' and '(.+)' both train (\S+): keep one of them\.", reason)
        assert found, reason
        # A part is called by the name of its combination and its own.
        assert tuple(name.partition("/")[0] for name in found.groups()[:2]) == pair
        assert found[3] in own


def test_a_position_that_is_not_there_is_refused():
    adaptation = attach(decoder(), build(("lora", "ia3")))
    with pytest.raises(PeftkitError, match=r"position 2: there are 0 \(lora\), 1 \(ia3\)"), adaptation.without([2]):
        pass


def test_two_soft_prompts_stand_one_behind_the_other():
    model = decoder()
    adaptation = attach(model, build(("prompt-tuning", "p-tuning")))
    randomise(adaptation)
    both = adaptation.soft_ids
    assert both == tuple(range(both[0], both[0] + len(both)))
    with adaptation.without([0]):
        second = adaptation.soft_ids
    with adaptation.without([1]):
        first = adaptation.soft_ids
    assert first + second == both
    assert not set(first) & set(second)
