"""What is held of one model of any family: each check returns a word for the table, or raises AssertionError."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from facts import facts
from losses import loss_of, plain_loss
from subjects import randomise
from torch import Tensor

from pages.models import reason, small
from peftkit.adaptation import Adaptation, attach, load_adapter, save_adapter
from peftkit.data.batches import Batch, collate
from peftkit.data.encode import Encoded, insert
from peftkit.engine.engine import Arrangement, Engine, choose
from peftkit.engine.memory_plan import recompute
from peftkit.engine.packed_batch import prompts
from peftkit.errors import PeftkitError
from peftkit.generation.decoding import generate
from peftkit.generation.settings import Settings
from peftkit.method import METHODS, Method
from peftkit.models.doubled import doubled
from peftkit.optim.build import Optimizers
from peftkit.ports.context import context_of

CPU = torch.device("cpu")
LENGTHS = (21, 17, 9, 5, 1)
"""Of the rows: longer than a sliding window and two chunks of a state, and as short as one token."""
SAME = 2e-5
"""How far logits and losses may lie apart, relative to the spread of the logits; more is not rounding."""
EXACT = 1e-9
"""The same in fp64, of what is one function."""
Measured = tuple[Tensor, dict[str, Tensor]]
"""A loss and its gradients by name."""
NEW = 6
"""Tokens of an answer."""
NEAR = 5e-4
"""How far gradients may lie apart, relative to the largest of a method."""


def tiny_method(name: str, **more: Any) -> Method:
    """Build a method with its defaults, of a size that tiny models allow."""
    return METHODS[name].from_options(small(name, **more))


def rows(vocabulary: int) -> list[Encoded]:
    """Return rows of unequal length, two of which begin alike; all but the first tokens of each are trained on."""
    generator = torch.Generator().manual_seed(5)
    texts = [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]
    texts[1][:8] = texts[0][:8]
    return [Encoded(ids, [-100] * min(4, len(ids)) + ids[4:]) for ids in texts if len(ids) > 4]


@dataclass
class Held:
    """A model with what its checks share; each check leaves it as it was."""

    model: Any
    tokenizer: Any
    folder: Any
    """A folder of the checks' own."""

    @cached_property
    def given(self) -> list[Encoded]:
        """The rows that are run."""
        return rows(min(300, self.model.get_input_embeddings().weight.shape[0]))

    @cached_property
    def base(self) -> Tensor:
        """The logits of the first row."""
        return self.logits()

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The model's tensors as they are at first."""
        return {key: value.clone() for key, value in self.model.state_dict().items()}

    @property
    def spread(self) -> float:
        """How far the logits lie around their mean."""
        return float(self.base.std())

    def logits(self, soft: Sequence[int] = ()) -> Tensor:
        """Return the logits [T, V] of the first row, behind a soft prompt where there is one."""
        batch = collate([insert(self.given[0], soft, 0)], 0)
        with torch.no_grad(), context_of(self.model).prompted(prompts(batch)):
            return self.model(input_ids=batch.input_ids, use_cache=False).logits[0, len(soft) :]

    def apart(self, one: Tensor, other: Tensor) -> float:
        """Return the largest difference of logits, relative to their spread."""
        return float((one - other).abs().max()) / max(self.spread, float(other.std()))


# One method on one model --------------------------------------------------------------------------------------------


def holds(held: Held, name: str, *, whole: bool = True) -> str:
    """Hold one method to all that is promised of it; returns "y", or the reason for which it is refused.

    Not `whole`, it is not brought into a folder and back.
    """
    assert held.base.isfinite().all()
    assert held.weights
    try:
        adaptation = attach(held.model, [tiny_method(name)], seed=1)
    except PeftkitError as error:
        return reason(str(error))
    try:
        _starts(held, adaptation, name)
        _changes(held, adaptation, packed_as_plain(held, adaptation)[1])
        _merges(held, adaptation)
        adaptation.finish()
        expected = held.logits(adaptation.soft_ids)
        save_adapter(adaptation, held.folder, {"name": "a model", "fingerprint": None})
    finally:
        adaptation.remove()
    for key, value in held.model.state_dict().items():
        assert torch.equal(value, held.weights[key]), f"removed, it leaves another {key}"
    if whole:
        again = load_adapter(held.model, held.folder, None)
        assert held.apart(held.logits(again.soft_ids), expected) <= SAME, "loaded, it gives other logits"
        again.remove()
    return "y"


def _starts(held: Held, adaptation: Adaptation, name: str) -> None:
    if not facts(name).moves_base:
        assert held.apart(held.logits(adaptation.soft_ids), held.base) <= SAME, "its start changes the logits"
    given = [insert(row, adaptation.soft_ids, 0) for row in held.given]
    adaptation.prepare([collate(given, 0)])
    randomise(adaptation)


def packed_as_plain(held: Held, adaptation: Adaptation) -> tuple[list[str], dict[str, Tensor]]:
    """Hold that packed rows, padded rows and rows by themselves give one loss and one gradient.

    Returns what is told of the run, and the gradients. A model may make much of a rounding: what is apart in fp32 has
    to be together in fp64.
    """
    try:
        return _packed_as_plain(held, adaptation, SAME, NEAR)
    except AssertionError:
        _taken(dict(adaptation.parameters()))
        with doubled(held.model):
            notices, gradients = _packed_as_plain(held, adaptation, SAME / 20, NEAR / 20)
        return notices, {key: gradient.float() for key, gradient in gradients.items()}


def _packed_as_plain(
    held: Held, adaptation: Adaptation, same: float, near: float
) -> tuple[list[str], dict[str, Tensor]]:
    given = [insert(row, adaptation.soft_ids, 0) for row in held.given]
    parameters = dict(adaptation.parameters())
    losses = [_knowing_its_prompt(held.model, collate([row], 0)) for row in given]
    expected = torch.stack(losses).sum()
    expected.backward()
    plain = expected.detach(), _taken(parameters)
    assert any(bool(gradient.any()) for gradient in plain[1].values()), "no gradient reaches what is trained"
    engine, notices = choose(held.model, given, 0, CPU, Arrangement(), adaptation.methods)
    padded = Arrangement(flat=False, apart=engine.arrangement.apart)
    for arranged in (engine, Engine(held.model, padded)) if engine.arrangement.flat else (engine,):
        packed = arranged.pack(collate(given, 0))
        with arranged.running(packed):
            loss = loss_of(arranged, packed)
            loss.backward()
        how = "packed" if arranged.arrangement.flat else "padded"
        _together(how, (loss.detach(), _taken(parameters)), plain, same * max(1.0, held.spread), near)
    return notices, plain[1]


def _knowing_its_prompt(model: Any, batch: Batch) -> Tensor:
    with context_of(model).prompted(prompts(batch)):
        return plain_loss(model, batch)


def _taken(parameters: dict[str, Any]) -> dict[str, Tensor]:
    """Return the gradients by name, and take them off."""
    found = {key: parameter.grad for key, parameter in parameters.items() if parameter.grad is not None}
    for parameter in parameters.values():
        parameter.grad = None
    return found


def _together(how: str, found: Measured, expected: Measured, same: float, near: float) -> None:
    """Hold that two losses and their gradients lie together, relative to the loss and to the largest gradient."""
    difference = abs(float(found[0] - expected[0]))
    assert difference <= same * max(1.0, abs(float(expected[0]))), f"{how}: the loss is {difference:.2g} off"
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values() if gradient.numel())
    for key, gradient in expected[1].items():
        other = found[1].get(key)
        assert other is not None or not gradient.any(), f"{how}: no gradient of {key}"
        if other is not None and other.numel():
            off = float((other - gradient).abs().max()) / max(largest, 1e-12)
            assert off <= near, f"{how}: the gradient of {key} is {off:.2g} off"


def _changes(held: Held, adaptation: Adaptation, gradients: dict[str, Tensor]) -> None:
    before = held.logits(adaptation.soft_ids)
    optimizer = Optimizers(adaptation.groups(1e-2, 0.0))
    for key, parameter in adaptation.parameters():
        parameter.grad = gradients.get(key)
    adaptation.after_backward(1, 4)
    optimizer.step()
    optimizer.zero_grad()
    adaptation.after_step(1, 4)
    assert held.apart(held.logits(adaptation.soft_ids), before) > SAME, "a step changes nothing"


def _merges(held: Held, adaptation: Adaptation) -> None:
    if adaptation.unmergeable() is not None:
        return
    if _merged(held, adaptation) > 5 * SAME:
        with doubled(held.model):
            assert _merged(held, adaptation) <= EXACT, "merged, it gives other logits"


def _merged(held: Held, adaptation: Adaptation) -> float:
    """Return how far the logits of the merged model lie from those of the adapted one."""
    expected = held.logits(adaptation.soft_ids)
    adaptation.merge_()
    apart = held.apart(held.logits(), expected)
    adaptation.unmerge_()
    return apart


# One model ------------------------------------------------------------------------------------------------------------


def computes_as_plain(held: Held) -> str:
    """Hold LoRA on every linear map to one loss and gradient, however it is computed; says what is not packed."""
    adaptation = attach(held.model, [tiny_method("lora", targets="linear")], seed=1)
    try:
        randomise(adaptation)
        notices, _ = packed_as_plain(held, adaptation)
        _recomputed(held, adaptation)
    finally:
        adaptation.remove()
    return "; ".join(notices) or "packed"


def _recomputed(held: Held, adaptation: Adaptation) -> None:
    """Hold that recomputed activations change nothing, where the model can recompute them."""
    if not getattr(held.model, "supports_gradient_checkpointing", False):
        return
    parameters, found = dict(adaptation.parameters()), []
    held.model.train()
    try:
        for what in ("nothing", "layers"):
            recompute(held.model, what)
            torch.manual_seed(0)  # routers may draw in training
            loss = sum(plain_loss(held.model, collate([row], 0)) for row in held.given)
            loss.backward()
            found.append((loss.detach(), _taken(parameters)))
    finally:
        recompute(held.model, "nothing")
        held.model.eval()
    _together("recomputed", found[1], found[0], SAME * max(1.0, held.spread), NEAR)


def answers(held: Held, batch_size: int = 5) -> None:
    """Hold that each token of the answers to prompts of mixed lengths is the likeliest one without a cache.

    What a rounding decides, such as which of all keys are the best, has to be so in fp64.
    """
    try:
        _answers(held, batch_size)
    except AssertionError:
        with doubled(held.model):
            _answers(held, batch_size)


def _answers(held: Held, batch_size: int) -> None:
    generator = torch.Generator().manual_seed(9)
    prompts = [torch.randint(3, 250, (length,), generator=generator).tolist() for length in LENGTHS]
    made = generate(held.model, held.tokenizer, prompts, Settings(max_new_tokens=NEW, ends=()), batch_size=batch_size)
    for prompt, answer in zip(prompts, made, strict=True):
        assert len(answer.ids) == NEW, f"{len(answer.ids)} tokens answer a prompt of {len(prompt)}, not {NEW}"
        with torch.no_grad():
            logits = held.model(input_ids=torch.tensor([prompt + answer.ids]), use_cache=False).logits[0].float()
        at = logits[len(prompt) - 1 : -1]
        below = (at.max(1).values - at[torch.arange(NEW), answer.ids]) / held.spread
        assert float(below.max()) <= 1e-3, f"the answer to a prompt of {len(prompt)} is not the likeliest one"
