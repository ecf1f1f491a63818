"""What the laws are held of: every registered method with each of its trial options, on two architectures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from draw import share, some, turn
from facts import facts
from storages import looked_at, stored
from torch import Tensor

from peftkit.adaptation import ATTRIBUTE, Adaptation, attach, check_methods
from peftkit.data.encode import Encoded, insert, mark
from peftkit.errors import PeftkitError
from peftkit.keys import Keys, marked
from peftkit.layout import Layout
from peftkit.method import METHODS, Method
from peftkit.models.tiny import VOCABULARY
from peftkit.quantization.weight import dense

ARCHITECTURES = ("llama", "gpt2")


def options(name: str, position: int) -> dict[str, Any]:
    """Return the options of one trial; 0 is the method as it comes."""
    return {} if position == 0 else dict(facts(name).trials[position - 1])


def build(name: str, position: int) -> Method:
    """Build the method of one trial."""
    return METHODS[name].from_options(options(name, position))


def tokens(rows: int = 2, length: int = 9, seed: int = 0) -> Tensor:
    """Draw token ids [rows, length] that avoid the special tokens."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@cache
def layout_of(trait: str | None, architecture: str) -> Layout:
    """Return the layout of the model that methods of one trait are checked on."""
    return Layout(looked_at(trait, architecture))


def suits(name: str, position: int, architecture: str) -> bool:
    """Say whether the method takes the architecture; one that suits neither fails a law of its own."""
    needs = METHODS[name].needs
    try:
        check_methods(looked_at(needs, architecture), [build(name, position)], layout_of(needs, architecture))
    except PeftkitError:
        return False
    return True


SUBJECTS = [
    (name, position, architecture)
    for name in METHODS.names()
    for position in range(1 + len(facts(name).trials))
    for architecture in ARCHITECTURES
    if suits(name, position, architecture)
]
IDS = [f"{name}-{position}-{architecture}" for name, position, architecture in SUBJECTS]


COSTLY = 3
"""Of so many methods a costly law holds one, where its mark says no other number."""


def drawn(law: str, costly: int) -> list[tuple[str, int, str]]:
    """Return the subjects that `make test` holds to a law.

    They are half of the trials of each method, on one architecture each; of a costly law one trial of one in
    `costly` methods. Other laws draw other ones.
    """
    held = []
    names = list(dict.fromkeys(name for name, _, _ in SUBJECTS))
    for name in names if not costly else share(law, names, costly):
        trials = list(dict.fromkeys(position for other, position, _ in SUBJECTS if other == name))
        first = turn(f"{law}/{name}", 1 << 16)
        count = 1 if costly else (len(trials) + 1) // 2
        for position in some(f"{law}/{name}", trials, count):
            there = [each for other, trial, each in SUBJECTS if (other, trial) == (name, position)]
            held.append((name, position, there[(first + position) % len(there)]))
    return held


def soft_ids(model: Any) -> list[int]:
    """Return the ids of the soft prompt that the active adaptation wants in front."""
    root = model.__dict__.get(ATTRIBUTE)
    names = () if root is None else root.context.active
    return [index for name in names for index in root.adaptations[name].soft_ids]


def given(model: Any, ids: Tensor) -> Tensor:
    """Return ids [B, T] behind the soft prompt that the active adaptation wants, each row with a key where it asks."""
    soft = torch.tensor(soft_ids(model), dtype=torch.long).expand(ids.shape[0], -1)
    root = model.__dict__.get(ATTRIBUTE)
    keys = [root.adaptations[name].keys for name in (() if root is None else root.context.active)]
    return keyed(torch.cat([soft, ids], 1), next((each for each in keys if each is not None), None))


def keyed(ids: Tensor, keys: Keys | None) -> Tensor:
    """Return ids [B, T] with the i-th of the keys on the first id of row i; as they are without keys."""
    rows = enumerate(ids.tolist())
    return ids if keys is None else torch.tensor([marked(row, number % len(keys.names)) for number, row in rows])


def fed(adaptation: Adaptation, rows: Sequence[Encoded]) -> list[Encoded]:
    """Return rows behind the soft prompt of an adaptation, each with a key where it asks for one."""
    behind, keys = [insert(row, adaptation.soft_ids, 0) for row in rows], adaptation.keys
    return behind if keys is None else [mark(row, at % len(keys.names)) for at, row in enumerate(behind)]


def run(model: Any, ids: Tensor, **rest: Any) -> Tensor:
    """Return the logits [B, T, vocabulary] at the ids, behind the soft prompt where there is one."""
    return model(input_ids=given(model, ids), **rest).logits[:, -ids.shape[1] :]


def loss(model: Any, ids: Tensor) -> Tensor:
    """Return the next-token loss on the ids."""
    return torch.nn.functional.cross_entropy(run(model, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def logits(model: Any, ids: Tensor | None = None) -> Tensor:
    """Run the model without gradients."""
    with torch.no_grad():
        return run(model, tokens() if ids is None else ids)


def randomise(adaptation: Adaptation, seed: int = 0, scale: float = 0.1) -> None:
    """Move every trainable tensor by normal noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def attached(name: str, position: int, architecture: str, **changes: Any) -> tuple[Any, Adaptation]:
    """Attach one subject to a fresh tiny model, stored as the method needs it."""
    model = stored([name], architecture, **changes)
    return model, attach(model, [build(name, position)])


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Hold that every own tensor of the model is bit for bit the same afterwards."""
    before = {key: value.clone() for key, value in model.state_dict().items() if ".seated." not in key}
    yield
    after = model.state_dict()
    for key, value in before.items():
        assert torch.equal(value, after[key]), f"{key} changed"


def hold_equal_to_dense(model: Any, twin: Any, method: str, layers: Mapping[str, Any]) -> None:
    """Assert that the method on the packed `layers` of `model` counts, computes and differentiates as on `twin`.

    `twin` holds the same weights in dense layers; no stored weight may change.
    """
    frozen = {name: dense(module).clone() for name, module in layers.items()}
    results = []
    for one in (model, twin):
        adaptation = attach(one, [build(method, 0)])
        torch.manual_seed(0)
        adaptation.prepare([])
        randomise(adaptation)
        one.eval()
        value = loss(one, tokens())
        value.backward()
        gradients = {key: parameter.grad for key, parameter in adaptation.parameters()}
        results.append((value.detach(), gradients, adaptation.trainable, adaptation.total))
    (packed_loss, packed_gradients, *packed_counts), (dense_loss, dense_gradients, *dense_counts) = results
    assert abs(packed_loss - dense_loss) <= 1e-5
    assert packed_counts == dense_counts
    assert set(packed_gradients) == set(dense_gradients)
    for key, gradient in dense_gradients.items():
        if gradient is None:
            assert packed_gradients[key] is None
            continue
        assert torch.allclose(packed_gradients[key], gradient, atol=1e-5, rtol=1e-4), key
    for name, value in frozen.items():
        assert torch.equal(dense(model.get_submodule(name)), value), f"{name} changed"
