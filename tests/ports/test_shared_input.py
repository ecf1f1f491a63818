"""Linear layers that read one input are computed together, and are what they are one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftkit.adaptation import Adaptation, attach
from peftkit.engine.memory_plan import recompute
from peftkit.kernels.low_rank_spans import Pair
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.ports.shared_input import SharedInput, linears_with_pairs, observed, shared

IDS = torch.tensor([[5, 9, 31, 7, 2, 40], [8, 8, 17, 3, 60, 11]])


def adapted(
    method: str = "lora", architecture: str = "llama", **options: Any
) -> tuple[nn.Module, Adaptation, list[SharedInput]]:
    """Return a tiny model in training, its adaptation with values everywhere, and its groups."""
    model = tiny(architecture)
    adaptation = attach(model, [METHODS[method].from_options(options)], seed=3)
    generator = torch.Generator().manual_seed(4)
    for _, parameter in adaptation.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.train()
    return model, adaptation, groups_of(model)


def groups_of(model: nn.Module) -> list[SharedInput]:
    """Return the groups of a model in training."""
    model.eval()
    with torch.no_grad(), observed(model) as groups:
        model(input_ids=IDS)
    model.train()
    return groups


def names(model: nn.Module, groups: list[SharedInput]) -> set[str]:
    """Return the last names of the members of all groups, those of one joined."""
    of = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    return {" ".join(of[member] for member in group.members) for group in groups}


def gradients(model: nn.Module, adaptation: Adaptation, groups: list[SharedInput]) -> list[Tensor]:
    """Return the loss and the gradients of all that is trained."""
    with shared(groups):
        loss = model(input_ids=IDS, labels=IDS).loss
        return [loss.detach(), *torch.autograd.grad(loss, [parameter for _, parameter in adaptation.parameters()])]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "opt"])
@pytest.mark.parametrize("method", ["lora", "lora-fa", "lora-plus"])
def test_together_is_one_by_one(method: str, architecture: str):
    model, adaptation, groups = adapted(method, architecture, targets=["linear"])
    assert any(len(group.members) == 3 for group in groups)
    expected = gradients(model, adaptation, [])
    for found, other in zip(gradients(model, adaptation, groups), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=2e-5, atol=1e-7)


def test_groups_are_those_that_read_one_input():
    model, _, groups = adapted(targets=["linear"], rank_pattern={"k": 3})
    assert names(model, groups) == {"q_proj k_proj v_proj", "gate_proj up_proj"}
    assert len(groups) == 2 * model.config.num_hidden_layers
    model, _, groups = adapted(targets=["q", "v", "up", "down"])
    assert names(model, groups) == {"q_proj v_proj"}


@pytest.mark.parametrize(
    ("method", "options"),
    [("lora", {"dropout": 0.1}), ("dora", {}), ("ia3", {}), ("prefix-tuning", {})],
    ids=lambda value: str(value),
)
def test_adapters_that_do_more_stay_by_themselves(method: str, options: dict[str, Any]):
    model, _, groups = adapted(method, **options)
    state = torch.get_rng_state()
    assert groups_of(model) == groups == []
    assert torch.equal(torch.get_rng_state(), state)


def test_each_pass_asks_the_adapters_anew():
    """An adapter that is switched off, or an adaptation that is merged, leaves its module out of the group."""
    model, adaptation, groups = adapted(targets=["linear"])
    group = groups[0]
    before = gradients(model, adaptation, groups)
    adapter = next(iter(group.members[1].seated.values()))[0]
    adapter.enabled = False
    with shared(groups):
        off = model(input_ids=IDS, labels=IDS).loss.item()
    assert off == pytest.approx(model(input_ids=IDS, labels=IDS).loss.item(), rel=1e-6)
    assert off != pytest.approx(before[0].item(), rel=1e-6)
    adapter.enabled = True
    again = gradients(model, adaptation, groups)
    assert all(torch.equal(found, other) for found, other in zip(again, before, strict=True))


def test_a_member_that_is_given_something_else_computes_that():
    _, _, groups = adapted(targets=["q", "k", "v"])
    first, second, third = groups[0].members
    x, other = torch.randn(2, 5, first.in_features), torch.randn(2, 5, first.in_features)
    with shared(groups):
        first(x)
        assert set(groups[0].waiting) == {second, third}
        found = second(other), third(x)
        assert not groups[0].waiting
        first(x)
    assert not groups[0].waiting
    assert first.sharing is None
    torch.testing.assert_close(found, (second(other), third(x)))


def test_nothing_is_together_without_gradients():
    model, _, groups = adapted(targets=["linear"])
    with shared(groups), torch.no_grad():
        groups[0].members[0](torch.randn(1, 4, model.config.hidden_size))
        assert not groups[0].waiting


def test_layers_that_are_computed_again_are_together_again():
    model, adaptation, groups = adapted(targets=["linear"])
    expected = gradients(model, adaptation, groups)
    for what in ("mlps", "layers"):
        recompute(model, what)
        found = gradients(model, adaptation, groups)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-7)
        assert not groups[0].waiting


def test_an_output_that_nothing_depends_on_has_no_gradient():
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    x, plains = drawn(2, 3, 5), [(drawn(4, 5).detach(), None), (drawn(6, 5).detach(), drawn(6).detach())]
    pairs = [Pair(drawn(2, 5), drawn(4, 2), 0.5), Pair(drawn(3, 5), drawn(6, 3), 2.0)]
    inputs = [x, *(tensor for pair in pairs for tensor in pair[:2])]

    def outputs(*given: Tensor) -> tuple[Tensor, ...]:
        return linears_with_pairs(given[0], plains, [Pair(*given[1:3], 0.5), Pair(*given[3:], 2.0)])

    assert torch.autograd.gradcheck(outputs, inputs)
    found = torch.autograd.grad(outputs(*inputs)[1].sum(), inputs, allow_unused=True)
    assert [gradient is None for gradient in found] == [False, True, True, False, False]
    y = x @ plains[1][0].T + plains[1][1] + 2.0 * (x @ pairs[1].down.T @ pairs[1].up.T)
    torch.testing.assert_close(found[0], torch.autograd.grad(y.sum(), x)[0])


def test_the_input_is_kept_once():
    kept: list[Tensor] = []
    x = torch.randn(1, 50, 16, requires_grad=True)
    plains = [(torch.randn(16, 16), None)] * 3
    pairs = [Pair(torch.randn(2, 16, requires_grad=True), torch.randn(16, 2, requires_grad=True), 1.0)] * 3
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda kept: kept):
        linears_with_pairs(x, plains, pairs)
    sizes = sorted(tensor.numel() for tensor in kept if tensor.shape[0] == 50)
    assert sizes == [50 * 6, 50 * 16]
