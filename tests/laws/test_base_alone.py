"""After training, however the base alone is asked for: its outputs are the untouched one's bit for bit, or refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from storages import stored
from subjects import build, logits, loss, randomise, run, tokens

from peftkit.adaptation import Adaptation, activate, attach, attached, load_adapter, route, save_adapter
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.optim.build import Optimizers

STEPS = 60
REFUSED = "base's were not kept|call unmerge_ first|cannot share a batch|switched off"


def train(model: Any, adaptation: Adaptation) -> None:
    """Take the first steps of a run, which move every part."""
    adaptation.prepare([])
    optimizer = Optimizers(adaptation.groups(1e-2, 0.0))
    model.train()
    for step in range(3):
        loss(model, tokens(3, 8)).backward()
        adaptation.after_backward(step, STEPS)
        optimizer.step()
        adaptation.after_step(step, STEPS)
        optimizer.zero_grad()
    model.eval()


def switched_to_none(model: Any) -> AbstractContextManager[None]:
    activate(model, None)
    return nullcontext()


WAYS: dict[str, Callable[[Any, Adaptation], AbstractContextManager[Any]]] = {
    "disabled": lambda model, adaptation: adaptation.disabled(),
    "without its parts": lambda model, adaptation: adaptation.without(range(len(adaptation.parts))),
    "rows of the base": lambda model, adaptation: route(model, [None, None]),
    "switched to none": lambda model, adaptation: switched_to_none(model),
}
"""How the base alone is asked for; inside, every row is to be its."""


def hold(model: Any, adaptation: Adaptation, base: torch.Tensor, refused: set[str]) -> None:
    """Hold each way to the base's outputs, but those that are to be refused, and the adaptation to its own after it."""
    name, adapted = adaptation.name, logits(model)
    assert not torch.equal(adapted, base)
    for label, way in WAYS.items():
        if label in refused:
            with pytest.raises(PeftkitError, match=REFUSED), way(model, adaptation):
                pass
        else:
            with way(model, adaptation), torch.no_grad():
                # Ids of soft prompts are not fed: what reads them is off.
                assert torch.equal(model(input_ids=tokens()).logits, base), label
        if attached(model).context.active != (name,):
            activate(model, name)
        assert torch.equal(logits(model), adapted), label


def changes_base(adaptation: Adaptation) -> bool:
    return any(part.changed for part in adaptation.parts)


@pytest.mark.costly
def test_where_it_is_kept_the_base_is_there(name, position, architecture):
    model = stored([name], architecture)
    base = logits(model)
    adaptation = attach(model, [build(name, position)])
    train(model, adaptation)
    refused = {"rows of the base"} if changes_base(adaptation) else set()
    hold(model, adaptation, base, refused)
    adaptation.finish()
    hold(model, adaptation, base, refused)


@pytest.mark.costly
def test_a_base_of_bf16_is_there_in_its_own_numbers(name, position, architecture):
    model = stored([name], architecture).to(torch.bfloat16)
    base = logits(model)
    adaptation = attach(model, [build(name, position)])
    randomise(adaptation)
    with adaptation.disabled(), torch.no_grad():
        assert torch.equal(model(input_ids=tokens()).logits, base)
    adaptation.remove()
    assert torch.equal(logits(model), base)


@pytest.mark.costly
def test_where_it_is_not_kept_the_base_is_there_or_refused(name, position, architecture, tmp_path):
    model = stored([name], architecture)
    base = logits(model)
    adaptation = attach(model, [build(name, position)], keep_base=False)
    train(model, adaptation)
    refused = set(WAYS) if changes_base(adaptation) else set()
    hold(model, adaptation, base, refused)
    if refused:
        with pytest.raises(PeftkitError, match=REFUSED):
            adaptation.remove()
        with pytest.raises(PeftkitError, match=REFUSED):
            attach(model, [METHODS["lora"].from_options({})], "other")
    adaptation.finish()
    save_adapter(adaptation, tmp_path / "adapter", {"name": architecture, "fingerprint": None})
    for keep_base in (True, False):
        fresh = stored([name], architecture)
        loaded = load_adapter(fresh, tmp_path / "adapter", None, keep_base=keep_base)
        routed = {"rows of the base"} if changes_base(loaded) else set()
        hold(fresh, loaded, base, routed if keep_base else refused)


@pytest.mark.costly
def test_beside_others_it_is_the_base_and_not_another(name, position, architecture):
    model = stored([name], architecture)
    base = logits(model)
    first = attach(model, [build(name, position)], "first")
    train(model, first)
    second = attach(model, [METHODS["lora"].from_options({})], "second")
    train(model, second)
    for label, adaptation in (("first", first), ("second", second)):
        activate(model, label)
        alone = logits(model)
        for off in (first, second):
            with off.disabled(), torch.no_grad():
                assert torch.equal(model(input_ids=tokens()).logits, base), (label, off.name)
                with adaptation.disabled():
                    assert torch.equal(model(input_ids=tokens()).logits, base)
                assert torch.equal(model(input_ids=tokens()).logits, base)
            assert torch.equal(logits(model), alone)
        if not changes_base(first):
            with route(model, ["second", "second"]), torch.no_grad():
                mixed = model(input_ids=tokens()).logits
                for off in (first, second):
                    with off.disabled():
                        assert torch.equal(model(input_ids=tokens()).logits, base)
                assert torch.equal(model(input_ids=tokens()).logits, mixed)


@pytest.mark.costly
@pytest.mark.parametrize("keep_base", [True, False], ids=["kept", "not-kept"])
def test_while_it_is_merged_it_is_refused(name, position, architecture, keep_base):
    model = stored([name], architecture)
    base = logits(model)
    adaptation = attach(model, [build(name, position)])
    train(model, adaptation)
    if not adaptation.chosen[0].mergeable:
        pytest.skip(f"{name} does not merge")
    attach(model, [METHODS["lora"].from_options({})], "other")
    activate(model, "default")
    adaptation.merge_(keep_base=keep_base)
    merged = logits(model)
    for way in (*WAYS.values(), lambda model, adaptation: route(model, ["default", "other"])):
        with pytest.raises(PeftkitError, match=REFUSED), way(model, adaptation):
            pass
        assert torch.equal(logits(model), merged)
    for change in (lambda: activate(model, "other"), lambda: attach(model, adaptation.chosen, "third")):
        with pytest.raises(PeftkitError, match="unmerge_"):
            change()
        assert torch.equal(logits(model), merged)
    if not keep_base:
        for leave in (adaptation.unmerge_, adaptation.remove):
            with pytest.raises(PeftkitError, match="base's were not kept"):
                leave()
            assert torch.equal(logits(model), merged)
        return
    adaptation.unmerge_()
    with adaptation.disabled():
        assert torch.equal(logits(model), base)


@pytest.mark.costly
def test_a_graph_that_is_open_meanwhile_keeps_its_gradients(name, position, architecture):
    """A loss with the base as its reference: the base runs between the forward and the backward pass."""
    model = stored([name], architecture)
    adaptation = attach(model, [build(name, position)])
    train(model, adaptation)
    found = []
    for between in (False, True):
        value = run(model, tokens()).square().mean()
        if between:
            with adaptation.disabled(), torch.no_grad():
                model(input_ids=tokens())
        value.backward()
        found.append({key: parameter.grad for key, parameter in adaptation.parameters()})
        for _, parameter in adaptation.parameters():
            parameter.grad = None
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        other = found[1][key]
        assert gradient is other if gradient is None or other is None else torch.equal(gradient, other), key
