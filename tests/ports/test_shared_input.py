"""Linear layers that read one input are computed together, and are what they are one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftkit.adaptation import Adaptation, attach
from peftkit.engine.memory_plan import recompute
from peftkit.kernels.low_rank import Pair, linears_with_pairs
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.ports.shared_input import SharedInput, groups_of, shared

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


def names(model: nn.Module, groups: list[SharedInput]) -> set[str]:
    """Return the last names of the members of all groups, those of one joined."""
    of = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    return {" ".join(of[member] for member in group.members) for group in groups}


def gradients(model: nn.Module, adaptation: Adaptation, groups: list[SharedInput]) -> list[Tensor]:
    """Return the loss and the gradients of all that is trained."""
    with shared(groups):
        loss = model(input_ids=IDS, labels=IDS).loss
        return [loss.detach(), *torch.autograd.grad(loss, [parameter for _, parameter in adaptation.parameters()])]


def close(found: list[Tensor], expected: list[Tensor], terms: int) -> None:
    """Hold tensors to others that are the same sums in another order, each of at most `terms` numbers.

    A sum that is rounded at each step is off by up to eps / 2 times its length times the sum of the numbers' sizes; in
    random order by its root. What goes through several such sums has some of the largest numbers' errors in each.
    """
    largest = torch.stack([tensor.abs().max() for tensor in expected]).max().item()
    bound = 8 * torch.finfo(expected[0].dtype).eps * terms**0.5 * largest
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=bound)


def longest_sum(model: Any) -> int:
    """Return the most numbers that a product of the model sums up, tokens and inputs."""
    return max(IDS.numel(), *(max(p.shape) for p in model.get_decoder().layers.parameters()))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "opt"])
@pytest.mark.parametrize("method", ["lora", "lora-fa", "lora-plus"])
def test_together_is_one_by_one(method: str, architecture: str):
    model, adaptation, groups = adapted(method, architecture, targets=["linear"])
    assert any(len(group.members) == 3 for group in groups)
    expected = gradients(model, adaptation, [])
    close(gradients(model, adaptation, groups), expected, longest_sum(model))


def test_groups_are_those_that_read_one_input():
    model, _, groups = adapted(targets=["linear"], rank_pattern={"k": 3})
    assert names(model, groups) == {"q_proj k_proj v_proj", "gate_proj up_proj"}
    assert len(groups) == 2 * model.config.num_hidden_layers
    model, _, groups = adapted(targets=["q", "v", "up", "down"])
    assert names(model, groups) == {"q_proj v_proj"}


@pytest.mark.parametrize("method", ["dora", "ia3", "prefix-tuning"])
def test_adapters_that_do_more_are_in_no_group(method: str):
    _, _, groups = adapted(method)
    assert not groups


def test_pairs_of_something_else_are_asked_once_and_stay_by_themselves():
    """What is dropped is drawn once for each layer, in the order of the layers, within a group and without."""
    model = tiny("llama")
    methods = [{"targets": ["q", "gate"]}, {"targets": ["k", "v", "up"], "dropout": 0.2}]
    adaptation = attach(model, [METHODS["lora"].from_options(options) for options in methods], seed=3)
    for _, parameter in adaptation.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.train()
    results = []
    for groups in (groups_of(model), []):
        torch.manual_seed(1)
        results.append([*gradients(model, adaptation, groups), torch.get_rng_state()])
    assert torch.equal(results[0].pop(), results[1].pop())
    close(results[0], results[1], longest_sum(model))


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
    assert first.input_group is None
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
        close(found, expected, longest_sum(model))
        assert not groups[0].waiting


def test_an_output_that_nothing_depends_on_has_no_gradient():
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    x, plains = drawn(2, 3, 5), [(drawn(4, 5).detach(), None), (drawn(6, 5).detach(), drawn(6).detach())]
    pairs = [Pair(x, drawn(2, 5), drawn(4, 2), 0.5), Pair(x, drawn(3, 5), drawn(6, 3), 2.0)]
    inputs = [x, *(tensor for pair in pairs for tensor in pair[1:3])]

    def outputs(*given: Tensor) -> tuple[Tensor, ...]:
        return linears_with_pairs(
            given[0], plains, [[Pair(given[0], *given[1:3], 0.5)], [Pair(given[0], *given[3:], 2.0)]]
        )

    assert torch.autograd.gradcheck(outputs, inputs)
    found = torch.autograd.grad(outputs(*inputs)[1].sum(), inputs, allow_unused=True)
    assert [gradient is None for gradient in found] == [False, True, True, False, False]
    y = x @ plains[1][0].T + plains[1][1] + 2.0 * (x @ pairs[1].down.T @ pairs[1].up.T)
    torch.testing.assert_close(found[0], torch.autograd.grad(y.sum(), x)[0])


def test_the_input_is_kept_once():
    kept: list[Tensor] = []
    x = torch.randn(1, 50, 16, requires_grad=True)
    plains = [(torch.randn(16, 16), None)] * 3
    pair = Pair(x, torch.randn(2, 16, requires_grad=True), torch.randn(16, 2, requires_grad=True), 1.0)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda kept: kept):
        linears_with_pairs(x, plains, [[pair]] * 3)
    sizes = sorted(tensor.numel() for tensor in kept if tensor.shape[0] == 50)
    assert sizes == [50 * 6, 50 * 16]
