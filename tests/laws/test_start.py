"""Invariants 1 to 3 and 7: the start, what is trained, the gradients, and numbers at the edge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import storages
import torch
from closed_forms import hold_counts
from facts import facts
from subjects import attached, build, given, logits, loss, options, randomise, tokens
from torch import Tensor, nn

from peftkit.adaptation import Adaptation, attach, count_stored, count_trained
from peftkit.errors import PeftkitError
from peftkit.ports.embedding import SoftPrompt

LAYERS = {"llama": "num_hidden_layers", "gpt2": "n_layer"}
"""How an architecture calls its number of layers."""


def step(model, adaptation, optimizer) -> None:
    ids = tokens(3, 8, seed=5)
    value = loss(model, ids)
    penalty = adaptation.penalty()
    (value if penalty is None else value + penalty).backward()


def test_start_is_the_base(name, position, architecture):
    base = logits(storages.stored([name], architecture))
    model, adaptation = attached(name, position, architecture)
    # A prompt in front of a text moves what is predicted in it, whatever it starts as.
    if not facts(name).moves_base and not adaptation.soft_ids:
        # A weight split in two is itself again up to its rounding.
        bound = 1e-5 if adaptation.chosen[0].splits_base else 1e-6
        assert (logits(model) - base).abs().max() <= bound
    randomise(adaptation)
    assert (logits(model) - base).abs().max() > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_only_what_is_declared_moves(name, position, architecture, checkpointing):
    model, adaptation = attached(name, position, architecture)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = dict(adaptation.parameters())
    chosen, layout = adaptation.chosen[0], adaptation.layout
    assert adaptation.trainable == count_trained(chosen, layout)
    hold_counts(chosen, layout, adaptation.trainable, count_stored(chosen, layout))
    mine = {id(parameter) for parameter in trained.values()}
    frozen = {key: p.detach().clone() for key, p in model.named_parameters() if id(p) not in mine}
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    before = {key: p.detach().clone() for key, p in trained.items()}
    optimizer = torch.optim.AdamW(list(trained.values()), lr=1e-2, weight_decay=0.0)
    received = dict.fromkeys(trained, False)
    for number in range(3):
        adaptation.context.step = number
        step(model, adaptation, optimizer)
        for key, parameter in trained.items():
            received[key] |= parameter.grad is not None and bool(parameter.grad.any())
        assert all(p.grad is None for p in model.parameters() if id(p) not in mine)
        optimizer.step()
        optimizer.zero_grad()
    silent = [key for key, seen in received.items() if not seen]
    still = [key for key, parameter in trained.items() if torch.equal(parameter, before[key])]
    assert not silent, f"no gradient at {silent[:3]}"
    assert not still, f"did not move: {still[:3]}"
    now = dict(model.named_parameters())
    assert all(torch.equal(value, now[key]) for key, value in frozen.items())
    assert all(torch.equal(value, dict(model.named_buffers())[key]) for key, value in buffers.items())


@pytest.mark.costly
def test_checkpointing_gives_the_same_gradients(name, position, architecture):
    gradients = []
    for checkpointing in (False, True):
        model, adaptation = attached(name, position, architecture)
        randomise(adaptation)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        torch.manual_seed(7)
        step(model, adaptation, None)
        gradients.append({key: parameter.grad for key, parameter in adaptation.parameters()})
    for key, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][key], atol=1e-6), key


@pytest.mark.costly
def test_gradients_are_right_in_float64(name, position, architecture):
    model, adaptation = attached(name, position, architecture)
    randomise(adaptation)
    model.eval()
    around = [
        (site, adapter)
        for part in adaptation.parts
        for site, adapter in list(part.adapters.items())[:3]
        if not (adapter.inside or adapter.reads or isinstance(adapter, SoftPrompt))
    ]
    if not around:
        pytest.skip(f"{name} has no adapter around a linear map or hidden states")
    for site, adapter in around:
        adapter.double()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(adapter.site.outputs, adapter.site.inputs, dtype=torch.float64, generator=generator)
        x = torch.randn(2, adapter.site.inputs, dtype=torch.float64, generator=generator).requires_grad_()
        parameters = list(adapter.parameters())
        names = [key for key, _ in adapter.named_parameters()]

        def run(x, *values, adapter=adapter, names=names, weight=weight):
            call = lambda value: nn.functional.linear(value, weight)  # noqa: E731
            return torch.func.functional_call(adapter, dict(zip(names, values, strict=True)), (call, x))

        # Reproducible, linear in the gradient that comes in, and right where none comes in.
        assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True), site
        hold_jacobian(run, (x, *parameters), generator)


def hold_jacobian(run: Callable[..., Tensor], inputs: tuple[Tensor, ...], generator: torch.Generator) -> None:
    """Assert that autograd's whole Jacobian of `run` is the numerical one along 8 random directions.

    Each entry of the inputs moves by normal noise, so a wrong entry of the Jacobian shows in full in one direction or
    another. It takes 16 forward passes, where moving one entry at a time takes two for each of thousands.
    """
    outputs = run(*inputs)
    learned = [value for value in inputs if value.requires_grad]
    rows = torch.eye(outputs.numel(), dtype=torch.float64).view(-1, *outputs.shape)
    jacobian = [torch.autograd.grad(outputs, learned, row, retain_graph=True, materialize_grads=True) for row in rows]
    step = 1e-7
    for _ in range(8):
        moves = [torch.randn(value.shape, dtype=torch.float64, generator=generator) for value in learned]
        told = [torch.stack([(entry * move).sum() for entry, move in zip(row, moves, strict=True)]) for row in jacobian]
        told = torch.stack(told).sum(1).view(outputs.shape)
        ahead, behind = (run(*moved(inputs, moves, sign * step)) for sign in (1, -1))
        assert torch.allclose((ahead - behind) / (2 * step), told, atol=1e-6, rtol=1e-7)


def moved(inputs: tuple[Tensor, ...], moves: list[Tensor], step: float) -> list[Tensor]:
    """Return the inputs, those that are learned `step` times their move farther."""
    left = iter(moves)
    return [value.detach() + step * next(left) if value.requires_grad else value for value in inputs]


def fewest_layers(name: str, position: int, architecture: str) -> tuple[Any, Adaptation]:
    """Attach the subject to a model of one layer where two adapters of each kind stand in it, otherwise to one of two.

    The compiler traces every layer anew, for seconds: a second one adds what two adapters are to each other.
    """
    with suppress(PeftkitError):
        if "layers" in options(name, position):
            return attached(name, position, architecture)
        model, adaptation = attached(name, position, architecture, **{LAYERS[architecture]: 1})
        kinds = Counter(type(adapter) for part in adaptation.parts for adapter in part.adapters.values())
        if kinds and min(kinds.values()) > 1 and not any(part.own for part in adaptation.parts):
            return model, adaptation
    return attached(name, position, architecture)


@pytest.mark.costly(16)
def test_it_compiles(name, position, architecture):
    model, adaptation = fewest_layers(name, position, architecture)
    randomise(adaptation)
    eager = logits(model)
    compiled = torch.compile(model, backend="aot_eager")
    ids = given(model, tokens())
    with torch.no_grad():
        result = compiled(input_ids=ids).logits[:, ids.shape[1] - tokens().shape[1] :]
    assert (result - eager).abs().max() <= 1e-5
    torch.compiler.reset()


@pytest.mark.costly
def test_bf16_runs(name, position, architecture):
    model, adaptation = attached(name, position, architecture)
    randomise(adaptation)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        step(model, adaptation, None)
    assert all(torch.isfinite(parameter.grad).all() for _, parameter in adaptation.parameters())
    model.zero_grad()
    model.bfloat16()
    for part in adaptation.parts:
        for module in (*part.adapters.values(), part.shared):
            if module is not None:
                module.float()
    assert torch.isfinite(logits(model)).all()


@pytest.mark.costly
def test_zero_rows_and_columns_give_no_nan(name, position, architecture):
    model = storages.stored([name], architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter[0], parameter[:, 0] = 0, 0
    adaptation = attach(model, [build(name, position)])
    assert torch.isfinite(logits(model)).all()
    step(model.train(), adaptation, None)
    assert all(torch.isfinite(parameter.grad).all() for _, parameter in adaptation.parameters())


def test_a_rank_above_the_layer_is_refused(name, position, architecture):
    method = build(name, position)
    if not hasattr(method, "rank") or not facts(name).bounded_rank:
        pytest.skip(f"{name} has no rank")
    model = storages.stored([name], architecture)
    with unchanged_classes(model), pytest.raises(PeftkitError, match=r"rank 34 is larger than .* choose at most"):
        attach(model, [type(method).from_options({"rank": 34})])


class unchanged_classes:  # noqa: N801
    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.before = [type(module) for module in self.model.modules()]

    def __exit__(self, *_):
        assert [type(module) for module in self.model.modules()] == self.before
