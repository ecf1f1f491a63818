"""Methods by layer: each range has what its methods have there; gaps and overlaps are refused at their line."""

from __future__ import annotations

import pytest
import torch
from subjects_of_methods import IDS, moved

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.methods.lora import LoRA
from peftkit.methods.methods_by_layer import MethodsByLayer
from peftkit.methods.pfeiffer_adapter import PfeifferAdapter
from peftkit.methods.prefix_tuning import PrefixTuning
from peftkit.methods.s4_design_space import S4DesignSpace, spindle
from peftkit.models.tiny import tiny
from peftkit.recipe import load

BY = {"0": "pfeiffer-adapter", "1-": ["lora", {"prefix-tuning": {"length": 4, "projection": 8}}]}


def test_each_range_computes_what_its_methods_do_there():
    adaptation = moved(attach(tiny("llama"), [MethodsByLayer(layers=BY)]))
    plain = [PfeifferAdapter(layers="0"), LoRA(layers="1"), PrefixTuning(layers="1", length=4, projection=8)]
    twin = moved(attach(tiny("llama"), plain))
    assert adaptation.state().keys() == twin.state().keys()
    twin.load_state(adaptation.state())
    assert torch.equal(adaptation.model(input_ids=IDS).logits, twin.model(input_ids=IDS).logits)
    adaptation.finish()
    (chosen,) = adaptation.described
    assert chosen.layers["1-"][1]["prefix-tuning"]["projection"] is None
    fresh = attach(tiny("llama"), [METHODS[chosen.name].from_options(chosen.options())], loading=True)
    fresh.load_state(adaptation.state())
    assert torch.allclose(fresh.model(input_ids=IDS).logits, twin.model(input_ids=IDS).logits, atol=1e-6)


def test_each_method_keeps_its_rate_and_own_parameters_stay_in_their_layers():
    adaptation = attach(tiny("gpt2"), [MethodsByLayer(layers={"0": "bitfit", "1": {"lora": {"learning_rate": 0.5}}})])
    assert {key.split(".h.")[1][0] for key, _ in adaptation.parameters() if "own" in key} == {"0"}
    assert [rate for rate, _ in adaptation.rates(None)] == [METHODS["bitfit"]().rate(32), 0.5]


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ({"0-1": "lora", "1-": "ia3"}, r"recipe.yaml:5: .*'1-': it overlaps '0-1': begin it at 2"),
        ({"0": "lora", "3-": "ia3"}, r"recipe.yaml:5: .*'3-': it leaves the layers 1 to 2 without .*begin it at 1"),
        ({"1": "lora", "2-": "ia3"}, r"recipe.yaml:4: .*the first range begins at layer 1: begin at 0"),
        ({"0-": "lora", "4": "ia3"}, r"recipe.yaml:5: .*follows '0-', which ends at the top"),
        ({"0-x": "lora", "4": "ia3"}, r"recipe.yaml:\d: .*'0-x' is no range of layers"),
        ({"0": "lroa", "1-": "ia3"}, r"recipe.yaml:\d: .*'lroa' is not a method.*lora"),
    ],
)
def test_a_gap_and_an_overlap_are_refused_at_their_line(layers, told, tmp_path):
    lines = [
        "model: bundled/tiny",
        "method: {methods_by_layer: ",
        "  {layers: {",
        *(f"  {k}: {v}," for k, v in layers.items()),
    ]
    (tmp_path / "recipe.yaml").write_text("\n".join([*lines, "  }}}", "dataset: bundled/e2e", ""]))
    with pytest.raises(PeftkitError, match=told):
        load(str(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ({"0": "lora"}, r"end at layer 0, and the layers 1 to 1 have none: let the last one end at 1"),
        ({"0-4": "lora"}, r"end at layer 4, and it ends with layer 1"),
        ({"0": "prompt-tuning", "1-": "lora"}, r"prompt-tuning: it has no place in the layers 0"),
    ],
)
def test_ranges_of_another_model_are_refused(layers, told):
    with pytest.raises(PeftkitError, match=told):
        attach(tiny("llama"), [MethodsByLayer(layers=layers)])


@pytest.mark.parametrize(
    ("layers", "sizes"), [(12, [2, 4, 4, 2]), (24, [4, 8, 8, 4]), (32, [5, 11, 11, 5]), (4, [1, 1, 1, 1])]
)
def test_the_groups_are_a_spindle(layers, sizes):
    groups = spindle(layers)
    assert [len(group) for group in groups] == sizes
    assert [layer for group in groups for layer in group] == list(range(layers))


def test_the_s4_design_has_its_methods_in_its_groups():
    adaptation = attach(tiny("llama", num_hidden_layers=12), [S4DesignSpace()])
    found = []
    for part in adaptation.parts:
        found.append((part.method.name.rpartition("/")[2], {adapter.site.layer for adapter in part.adapters.values()}))
    first, second, third, fourth = {0, 1}, {2, 3, 4, 5}, {6, 7, 8, 9}, {10, 11}
    assert found == [
        ("serial-adapter", first | second | third),
        ("lora", first | fourth),
        ("prefix-tuning", second | third | fourth),
        ("added-biases", third | fourth),
    ]
