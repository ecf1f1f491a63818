"""On every family of decoder the engine, with all its shortcuts, has the loss and gradients of the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from draw import marked
from losses import loss_of, plain_loss
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import zoo
from peftkit.adaptation import attach
from peftkit.data.batches import Batch, collate
from peftkit.data.encode import Encoded
from peftkit.engine.engine import Arrangement, choose
from peftkit.method import METHODS

CPU = torch.device("cpu")
HELD = ["minicpm3", "llama4_text", "qwen3_5_text"]
"""A head that scales, outputs of another form, layers with state."""


def rows() -> list[Encoded]:
    draw = torch.Generator().manual_seed(5)
    ids = [torch.randint(3, zoo.VOCABULARY, (9 + 4 * number,), generator=draw).tolist() for number in range(4)]
    ids[1][:9] = ids[0][:9]
    return [Encoded(row, [-100] * 4 + row[4:]) for row in ids]


def adapted(family: str, batch: Batch) -> tuple[Any, list[Tensor]]:
    """Return a tiny model with LoRA on all linear maps that it calls, away from its start, and what is trained."""
    try:
        model: Any = zoo.build(family)
        called = set()
        hooks = [m.register_forward_hook(lambda m, args, output: called.add(m)) for m in model.modules()]
        plain_loss(model, batch)
        for hook in hooks:
            hook.remove()
    except Exception as error:
        pytest.skip(f"no tiny model: {error}")
    called.discard(model.get_output_embeddings())
    maps = [path for path, m in model.named_modules() if m in called and type(m) in (nn.Linear, Conv1D)]
    adaptation = attach(model, [METHODS["lora"].from_options({"targets": maps, "rank": 1})], seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return model, [parameter for _, parameter in adaptation.parameters()]


def measured(loss: Tensor, parameters: list[Tensor]) -> tuple[float, float]:
    """Return a loss and the norm of its gradient."""
    gradients = [g.double().norm() for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]
    return loss.item(), torch.stack(gradients).norm().item()


@contextmanager
def rounded(model: nn.Module, seed: int) -> Iterator[None]:
    """Move each number of the weights by one rounding inside."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    draw = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for parameter in model.parameters():
                signs = torch.randn(parameter.shape, generator=draw).sign()
                parameter.mul_(1 + torch.finfo(parameter.dtype).eps * signs)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), before, strict=True):
                parameter.copy_(value)


@pytest.mark.parametrize("family", marked(zoo.families(), HELD))
def test_losses_and_gradients_are_those_of_the_model(family: str):
    """Where one rounding of the weights moves the gradient farther, as without a scale of the scores, so may we."""
    batch = collate(rows(), 0)
    model, parameters = adapted(family, batch)
    loss, norm = measured(plain_loss(model, batch), parameters)
    engine, _ = choose(model, rows(), 0, CPU, Arrangement())
    packed = engine.pack(batch)
    with engine.running(packed):
        mine = measured(loss_of(engine, packed), parameters)
    assert engine.arrangement.apart
    assert mine[0] == pytest.approx(loss, rel=1e-6)
    moved = 0.0
    for seed in range(3) if abs(mine[1] - norm) > 1e-6 * norm else ():
        with rounded(model, seed):
            moved = max(moved, abs(measured(plain_loss(model, batch), parameters)[1] - norm))
    assert mine[1] == pytest.approx(norm, rel=1e-6, abs=4 * moved)
