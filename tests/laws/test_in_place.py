"""Invariant 27: a model may write to the output of an adapted module, forward and backward."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from draw import marked, share
from facts import facts
from storages import stored
from torch import Tensor, nn

import zoo
from peftkit.adaptation import attach
from peftkit.kernels.tree import grow
from peftkit.method import METHODS
from peftkit.ports.attention_along import along
from peftkit.ports.context import Routing, context_of
from peftkit.ports.seat import Seat
from peftkit.ports.shared_input import groups_of, shared

IDS = torch.tensor([[5, 9, 31, 7, 2, 40]])
ADAPTERS = [name for name in METHODS.names() if not facts(name).biased]
"""BitFit finds no bias in the Llama."""


def add(module: nn.Module, args: Any, output: Any) -> Any:
    """Add one to the output as a new tensor."""
    return (output[0] + 1, *output[1:]) if isinstance(output, tuple) else output + 1


def add_in_place(module: nn.Module, args: Any, output: Any) -> None:
    """Add one to the output itself."""
    first = output[0] if isinstance(output, tuple) else output
    first += 1


def results(model: Any, parameters: list[Tensor], hook: Any) -> list[Tensor | None]:
    """Return the logits and the gradients of a model whose seats' outputs a hook changes."""
    hooks = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, Seat)]
    try:
        torch.manual_seed(0)
        logits = model(input_ids=IDS).logits
        return [logits.detach(), *torch.autograd.grad(logits.square().sum(), parameters, allow_unused=True)]
    finally:
        for handle in hooks:
            handle.remove()


CASES = [(name, way) for name in ADAPTERS for way in ("alone", "together", "spans")]


@pytest.mark.parametrize(("method", "way"), marked(CASES, share("in place", CASES)))
def test_an_output_may_be_written_to(method: str, way: str):
    if way == "spans" and facts(method).padded:
        pytest.skip("its rows are never flat tokens")
    model = stored([method], "llama")
    adaptation = attach(model, [METHODS[method].from_options({})], name="one")
    if any(part.changed for part in adaptation.parts):
        pytest.skip("trains the model's own weights")
    parameters: list[Tensor] = [parameter for _, parameter in adaptation.parameters()]
    context, groups, passing = context_of(model), groups_of(model) if way == "together" else [], ExitStack()
    if way == "spans":
        other = attach(model, [METHODS["lora"].from_options({"targets": ["linear"]})], name="two")
        parameters += [parameter for _, parameter in other.parameters()]
        trees = [grow(part.tolist()) for part in IDS.split((4, 2), 1)]
        passing.enter_context(context.routed(Routing.of_tokens([("one", 4), ("two", 2)])))
        passing.enter_context(along(model, *trees))
    model.train()
    with shared(groups), passing:
        found, expected = (results(model, parameters, hook) for hook in (add_in_place, add))
    for one, two in zip(found, expected, strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_a_model_that_adds_to_its_last_map_in_place_is_trained():
    """Falcon's blocks add to the output of their feed-forward part."""
    model = zoo.build("falcon")
    adaptation = attach(model, [METHODS["lora"].from_options({"targets": ["down"]})])
    model(input_ids=IDS).logits.square().sum().backward()
    gradients = [parameter.grad for _, parameter in adaptation.parameters()]
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
