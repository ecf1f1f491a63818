"""Weight decay reaches the matrices that multiply hidden states, and no vector, gate, scale, mask, logit or prompt."""

from __future__ import annotations

import pytest
import torch
from subjects import attached, randomise

import zoo
from peftkit.adaptation import Adaptation, attach
from peftkit.method import METHODS
from peftkit.optim.build import Optimizers

ROWS = {"E", "K", "V", "P"}
"""What rows of prompts, and keys and values of prefixes, are called; P is a matrix in `adalora`."""
SCALES = {"scale"}
MASKS = "_scores"
OTHERS = {
    "dept": {"A", "B"},  # their product is rows by position
    "diff-pruning": {"a"},
    "diff-pruning-structured": {"a"},
    "idpg": {"generator.b"},  # the rows that every example has
    "multihead-parallel-adapter": {"b", "c"},  # a bias for each head
    "randlora": {"l", "g"},
    "vblora": {"a", "b"},
}
"""Further tensors of two dimensions and more that stay, by method."""


def stays(name: str, key: str, dimensions: int) -> bool:
    """Say whether a tensor of a method is left alone, by what it is called in the method's formula."""
    leaf = key.rpartition("/")[2]
    if key.split("/")[1] == "own":
        return dimensions < 2
    row = leaf in ROWS and not (leaf == "P" and name.endswith("adalora"))
    return dimensions < 2 or row or leaf in SCALES or leaf.endswith(MASKS) or leaf in OTHERS.get(name, ())


def decayed(adaptation: Adaptation, rate: float = 0.1, decay: float = 5.0) -> dict[str, bool]:
    """Take a step along gradients of zero; return by key whether a tensor was halved, where it did not stay."""
    optimizer = Optimizers(adaptation.groups(rate, decay))
    for group in optimizer.param_groups:
        group["lr"] = rate
    before = {key: tensor.clone() for key, tensor in adaptation.state().items()}
    for _, parameter in adaptation.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    found = {}
    for key, parameter in adaptation.parameters():
        found[key] = not torch.equal(parameter, before[key])
        wanted = before[key] * (1 - rate * decay) if found[key] else before[key]
        assert torch.allclose(parameter, wanted), key
    return found


def test_each_tensor_decays_that_multiplies_hidden_states(name, position, architecture):
    _, adaptation = attached(name, position, architecture)
    randomise(adaptation)
    shapes = {key: parameter.ndim for key, parameter in adaptation.parameters()}
    methods = {str(position): part.method.name for position, part in enumerate(adaptation.parts)}
    expected = {key: not stays(methods[key.split("/")[0]], key, shapes[key]) for key in shapes}
    assert decayed(adaptation) == expected


@pytest.mark.parametrize("name", [name for name, cls in METHODS.items() if getattr(cls, "by_weight", False)])
def test_stacks_of_vectors_stay_and_those_of_matrices_decay(name):
    plain = {key: value for key, value in (("feedforward", ()), ("dropout", 0.0)) if hasattr(METHODS[name], key)}
    adaptation = attach(zoo.build("mixtral"), [METHODS[name].from_options({"targets": "experts", **plain})])
    randomise(adaptation)
    for key, moved in decayed(adaptation).items():
        parameter = dict(adaptation.parameters())[key]
        assert parameter.shape[0] == len(next(iter(adaptation.adapters())).site.each())
        assert moved != stays(name, key, parameter.ndim - 1), key


@pytest.mark.parametrize("name", ["diff-pruning", "diff-pruning-structured", "s-bitfit", "u-bitfit", "alphatuning"])
def test_gates_and_scales_stay_under_a_large_decay(name):
    _, adaptation = attached(name, 0, "gpt2")
    randomise(adaptation)
    found = decayed(adaptation, rate=1.0, decay=1000.0)
    kept = {key for key in found if key.rpartition("/")[2] in ("a", "group", "scale", "v")}
    assert kept
    assert not any(found[key] for key in kept)


def test_groups_alone_divide_and_no_state_changes():
    _, adaptation = attached("diff-pruning", 0, "llama")
    groups = adaptation.groups(1e-3, 0.1)
    assert sorted(key for group in groups for key in group["keys"]) == sorted(key for key, _ in adaptation.parameters())
    (pulled,) = [group for group in groups if group["weight_decay"]]
    assert {key.rpartition("/")[2] for key in pulled["keys"]} == {"w"}
    state, (again, other) = {}, (Optimizers(adaptation.groups(1e-3, decay)) for decay in (0.0, 0.1))
    for _, parameter in adaptation.parameters():
        parameter.grad = torch.ones_like(parameter)
    again.step()
    state = again.state()
    other.load_state(state)
    assert {key: value.shape for key, value in other.state().items()} == {k: v.shape for k, v in state.items()}
