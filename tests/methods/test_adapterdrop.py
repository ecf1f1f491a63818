"""AdapterDrop: none dropped is the adapters, all dropped the base; what is drawn follows from the step."""

from __future__ import annotations

import pytest
import torch
from subjects_of_methods import IDS, moved

import zoo
from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.methods.adapterdrop import AdapterDrop
from peftkit.methods.pfeiffer_adapter import PfeifferAdapter
from peftkit.models.tiny import tiny


def logits(method):
    model = tiny("llama")
    moved(attach(model, [method]))
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_none_dropped_is_the_adapters_and_all_dropped_the_base():
    whole, base = logits(PfeifferAdapter()), tiny("llama")(input_ids=IDS).logits
    assert torch.equal(logits(AdapterDrop()), whole)
    assert torch.equal(logits(AdapterDrop(drop=2)), base)
    assert not torch.allclose(whole, base)
    # Fixed at one, it is the adapters of the layers above, and those alone are there to be saved.
    upper = PfeifferAdapter(layers="1")
    assert torch.equal(logits(AdapterDrop(depth="fixed", drop=1)), logits(upper))
    states = [attach(tiny("llama"), [method]).state() for method in (AdapterDrop(depth="fixed", drop=1), upper)]
    assert states[0].keys() == states[1].keys()


def test_the_depth_follows_from_seed_and_step_and_takes_every_value():
    def depths(seed):
        adaptation = attach(tiny("llama", num_hidden_layers=4), [AdapterDrop()], seed=seed)
        shared = adaptation.parts[0].shared
        assert shared.most == 3
        return [shared.below(4, step) for step in range(64)]

    assert depths(0) == depths(0) != depths(1)
    assert {depths(0).count(depth) > 8 for depth in range(4)} == {True}


def test_in_training_the_lowest_adapters_get_no_gradient_in_a_step_that_leaves_them_out():
    model = tiny("llama")
    adaptation = moved(attach(model, [AdapterDrop()]))
    model.train()
    shared = adaptation.parts[0].shared
    for step in range(12):
        adaptation.context.step = step
        model(input_ids=IDS).logits.sum().backward()
        lowest = [p.grad for key, p in adaptation.parameters() if ".0." in key]
        assert all((gradient is None) == (shared.below(2, step) == 1) for gradient in lowest)
        for _, parameter in adaptation.parameters():
            parameter.grad = None
    assert {shared.below(2, step) for step in range(12)} == {0, 1}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"depth": "fixed", "drop": 2}, "drop is 2 and leaves no adapter: choose at most 1"),
        ({"drop": 3}, "drop is 3, and the model has 2 layers: choose at most 2"),
        ({"most": 2}, "most is 2, and the model has 2 layers: choose at most 1"),
        ({"of": "lroa"}, "lora"),
        ({"of": "adalora"}, "'adalora' has a training of its own"),
        ({"of": {"lora": {"rankk": 4}}}, "rankk"),
        ({"of": {"lora": {}, "dora": {}}}, "found 2 methods"),
        ({"of": "prompt-tuning"}, "'prompt-tuning' has a training of its own"),
        ({"of": "layernorm-tuning"}, "has no adapters of its own"),
    ],
)
def test_what_cannot_be_dropped_is_refused(options, told):
    with pytest.raises(PeftkitError, match=told):
        attach(tiny("llama"), [AdapterDrop.from_options(options)])


def test_stacks_of_experts_cannot_be_wrapped():
    with pytest.raises(PeftkitError, match=r"adapters at .*experts.*, which cannot be wrapped"):
        attach(zoo.build("mixtral"), [AdapterDrop.from_options({"of": {"lora": {"targets": "experts"}}})])
