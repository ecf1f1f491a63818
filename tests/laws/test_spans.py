"""Tokens of several adaptations in one batch: what each computes, and its gradients, are those of its own tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from draw import marked, share, some
from facts import facts
from storages import stored
from torch import Tensor

from peftkit.adaptation import activate, attach, attached, route
from peftkit.kernels.tree import grow
from peftkit.method import METHODS
from peftkit.ports.attention_along import along
from peftkit.ports.context import Routing

ROWS = {
    "one": [[5, 6, 7, 8, 9, 10, 11, 12, 13], [14, 15, 16, 17]],
    "two": [[9, 8, 7], [20, 21, 22]],
    "three": [[30, 31]],
}
FLAT = [name for name in METHODS.names() if not facts(name).padded]
CASES = [(name, family) for name in FLAT for family in ("llama", "gpt2") if family == "gpt2" or not facts(name).biased]
HELD = [some(f"spans/{name}", [case for case in CASES if case[0] == name], 1)[0] for name in FLAT]


def model_of_three(architecture: str, method: str) -> Any:
    """A model with the method and two LoRAs, one of which stands twice on the same layers; none starts at zero."""
    model = stored([method], architecture)
    chosen = {"one": [method], "two": ["lora"], "three": ["lora", "ia3"]}
    for number, (name, methods) in enumerate(chosen.items()):
        built = [METHODS[each].from_options({}) for each in methods]
        adaptation = attach(model, built, name=name, seed=number)
        adaptation.prepare([])
        if any(part.changed for part in adaptation.parts):
            pytest.skip("changes the model's own weights")
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for _, parameter in adaptation.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def run(model: Any, names: list[str]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Return the logits of each adaptation's tokens, and its gradients, in one batch of these."""
    root = attached(model)
    trees = []
    for name in names:
        soft = list(root.adaptations[name].soft_ids)
        trees.append(grow([[*soft, *row] for row in ROWS[name]]))
    sizes = [len(tree.ids) for tree in trees]
    ids, positions = (torch.cat([getattr(tree, key) for tree in trees])[None] for key in ("ids", "positions"))
    activate(model, names[0])
    with root.context.routed(Routing.of_tokens(list(zip(names, sizes, strict=True)))), along(model, *trees):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        (logits.square().mean() * logits.numel()).backward()
    found, gradients = {}, {}
    for name, part in zip(names, logits.detach().split(sizes, 1), strict=True):
        found[name] = part
        parameters = dict(root.adaptations[name].parameters())
        gradients[name] = {key: p.grad.clone() for key, p in parameters.items() if p.grad is not None}
        for parameter in parameters.values():
            parameter.grad = None
    return found, gradients


@pytest.mark.parametrize(("method", "architecture"), marked(CASES, HELD))
def test_each_computes_what_it_does_alone(method: str, architecture: str):
    model = model_of_three(architecture, method)
    logits, gradients = run(model, list(ROWS))
    for name in ROWS:
        own, expected = run(model, [name])
        torch.testing.assert_close(logits[name], own[name], rtol=1e-4, atol=1e-4)
        assert gradients[name].keys() == expected[name].keys()
        assert expected[name]
        for key, gradient in expected[name].items():
            torch.testing.assert_close(gradients[name][key], gradient, rtol=1e-3, atol=1e-3, msg=key)


@pytest.mark.parametrize("method", ["lora", "prefix-tuning"])
def test_one_span_is_what_runs_without_spans(method: str):
    model = model_of_three("llama", method)
    logits, _ = run(model, list(ROWS))
    for name, rows in ROWS.items():
        activate(model, name)
        soft = list(attached(model).adaptations[name].soft_ids)
        tree = grow([[*soft, *row] for row in rows])
        with torch.no_grad(), along(model, tree):
            own = model(input_ids=tree.ids[None], position_ids=tree.positions[None], use_cache=False).logits
        torch.testing.assert_close(logits[name], own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "architecture"), marked(CASES, share("rows", CASES)))
def test_rows_compute_what_they_do_alone(method: str, architecture: str):
    """Adapters of whole blocks stand around linear layers that have adapters too, of another row."""
    model, length = model_of_three(architecture, method).eval(), 24
    names: list[str | None] = ["two", "one", None, "three", "one", "two"]
    generator = torch.Generator().manual_seed(1)
    rows, expected = [], []
    for name in names:
        activate(model, name)
        soft = [] if name is None else list(attached(model).adaptations[name].soft_ids)
        rows.append([*soft, *torch.randint(5, 60, (length - len(soft),), generator=generator).tolist()])
        with torch.no_grad():
            expected.append(model(input_ids=torch.tensor(rows[-1:])).logits)
    with route(model, names), torch.no_grad():
        mixed = model(input_ids=torch.tensor(rows)).logits
    torch.testing.assert_close(mixed, torch.cat(expected), rtol=1e-4, atol=1e-4)
