"""Rows of every method in one batch, some with none: each row computes and answers what it does alone, in fp64.

What cannot be routed is refused, because it changes the model's own weights, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from draw import marked, some, whole
from facts import facts
from storages import needed, stored
from subjects import build, keyed
from torch import Tensor

from peftkit.adaptation import activate, attach, attached, check_methods, route
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS, Method
from peftkit.models.tiny import ARCHITECTURES

Row = tuple[str | None, list[int]]
"""The adaptation of a row of a batch, None for the base, and its tokens."""
CLOSE = 1e-10
MANY = 20
"""Methods in the one batch of `make test`; all of them otherwise."""
NEW = 6
"""Tokens of an answer."""


def storages() -> list[tuple[str, ...]]:
    """Return methods whose storage the others are held on: of none in particular, and of each that some need."""
    formats = {quantizer.name: (name,) for name in METHODS.names() if (quantizer := needed([name])) is not None}
    return [(), *formats.values()]


def trial(name: str, turn: int) -> Method:
    """Build a method with its options of a turn: those that it comes with, then its trials, over and over."""
    return build(name, turn % (1 + len(facts(name).trials)))


def chosen(architecture: str, storage: tuple[str, ...], turn: int) -> tuple[Any, dict[str, Method], set[str]]:
    """Return a base, the methods that find something there, and those of them that change its own weights."""
    model = stored(storage, architecture)
    layout, methods, changing = Layout(model), {}, set()
    names = METHODS.names()
    for name in names if whole() else some(f"mixed/{architecture}/{storage}/{turn}", names, MANY):
        method = trial(name, turn)
        try:
            found = check_methods(model, [method], layout)
        except PeftkitError:
            continue
        methods[name] = method
        if any(own for _, own in found) or any(part.splits_base for part in method.parts()):
            changing.add(name)
    return model, methods, changing


def adapted(model: Any, methods: dict[str, list[Method]]) -> Any:
    """Attach lists of methods by name, none of which is at its start, and bring everything to fp64."""
    for seed, (name, each) in enumerate(methods.items()):
        adaptation = attach(model, each, name, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in adaptation.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    activate(model, None)
    return model.double().eval()


def rows(model: Any, names: Sequence[str | None]) -> list[Row]:
    """Draw a row for each name, behind the soft prompt where there is one, each of a length of its own.

    All are of one length where the model's own code makes NaN of padding in fp64.
    """
    softs = [() if name is None else attached(model).adaptations[name].soft_ids for name in names]
    activate(model, None)
    pads = bool(model(**padded([(None, [5]), (None, [5, 6])])).logits.isfinite().all())
    drawn = []
    for seed, (name, soft) in enumerate(zip(names, softs, strict=True)):
        length = 4 + seed % 5 if pads else 4 + max(map(len, softs)) - len(soft)
        own = torch.randint(5, 60, (length,), generator=torch.Generator().manual_seed(seed))
        (ids,) = keyed(torch.tensor([[*soft, *own.tolist()]]), attached(model).adaptations[name].keys if name else None)
        drawn.append((name, ids.tolist()))
    return drawn


def padded(batch: Sequence[Row]) -> dict[str, Tensor]:
    """Return what the model is given of rows, padded on the left."""
    longest = max(len(ids) for _, ids in batch)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for _, ids in batch])
    filled = torch.tensor([[0] * (longest - len(ids)) + ids for _, ids in batch])
    return {"input_ids": filled, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def answers(model: Any, batch: Sequence[Row]) -> Tensor:
    """Return the tokens [B, NEW] that follow the rows, the likeliest one each time, through the model's cache."""
    given, past, said = padded(batch), None, []
    mask, positions, ids = given["attention_mask"], given["position_ids"], given["input_ids"]
    for _ in range(NEW):
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True)
        past, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        said.append(ids)
        mask, positions = torch.cat([mask, torch.ones_like(ids)], 1), positions[:, -1:] + 1
    return torch.cat(said, 1)


def hold(model: Any, names: Sequence[str | None], *, answered: bool = False) -> None:
    """Hold the rows of one batch to each of them alone: logits, and what is answered."""
    with torch.no_grad():
        batch = rows(model, names)
        with route(model, names):
            mixed = model(**padded(batch)).logits
            said = answers(model, batch) if answered else None
        for place, (name, ids) in enumerate(batch):
            activate(model, name)
            alone = model(**padded([(name, ids)])).logits[0]
            difference = (mixed[place, -len(ids) :] - alone).abs().max().item()
            assert difference <= CLOSE, f"{name or 'the base'} in a batch of {len(batch)}: {difference}"
            if said is not None:
                assert torch.equal(said[place], answers(model, [(name, ids)])[0]), name
    activate(model, None)


TURNS = 1 + max(len(facts(name).trials) for name in METHODS.names())
ALL = [
    (architecture, storage, turn) for turn in range(TURNS) for storage in storages() for architecture in ARCHITECTURES
]
HELD = [case for turn in (0, 1) for case in some(f"mixed/{turn}", [c for c in ALL if c[2] == turn], 1)]


@pytest.mark.parametrize(("architecture", "storage", "turn"), marked(ALL, HELD))
def test_all_methods_in_one_batch_are_each_alone(architecture, storage, turn):
    model, methods, changing = chosen(architecture, storage, turn)
    adapted(model, {name: [method] for name, method in methods.items()})
    for name in methods:
        if name in changing:
            with pytest.raises(PeftkitError, match=f"'{name}' changes the model's own weights and cannot share"):
                route(model, [name, None])
    routed = [name for name in methods if name not in changing]
    assert len(routed) > len(methods) / 2
    hold(model, [None, *routed, None], answered=True)


def pairs(architecture: str) -> list[tuple[str, str]]:
    """List pairs of methods on a base as it comes that leave its weights as they are: each with a few, by name."""
    _, methods, changing = chosen(architecture, (), 0)
    names = [name for name in methods if name not in changing]
    return [(name, other) for name in names for other in some(f"{architecture}/{name}", names, FEW) if name != other]


FEW = 8
"""Others that a method is held together with: all of them are in the batches above."""
PAIRS = [(architecture, *pair) for architecture in ("llama", "gpt2") for pair in pairs(architecture)]


@pytest.mark.parametrize(("architecture", "one", "other"), marked(PAIRS, some("pairs", PAIRS, 24)))
def test_two_methods_and_both_at_once_in_one_batch_are_each_alone(architecture, one, other):
    """Of blocks outside and linear maps inside, in either order of attaching, and of both in one adaptation."""
    first, second = build(one, 0), build(other, 0)
    model = stored((), architecture)
    chosen = {"other": [second], "one": [first], "both": [first, second], "turned": [second, first]}
    try:
        check_methods(model, chosen["both"])
    except PeftkitError:
        chosen = {"other": [second], "one": [first]}
    adapted(model, chosen)
    hold(model, [*chosen, None, *reversed(chosen)])
