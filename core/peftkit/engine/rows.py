"""Whether a model computes rows of text as training takes them: no token sees those behind it, and padding is nothing.

Both are tried on a few tokens before a run, as a model's own code may do otherwise: one that is no language model of
the usual kind shows each token the next one, which is then no prediction, and one that is made for padding on the left
moves a row by the padding on its right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.data.batches import collate
from peftkit.data.encode import Encoded
from peftkit.engine.head import logits_of
from peftkit.engine.packed_batch import PackedBatch
from peftkit.engine.proof import FAULTS
from peftkit.errors import PeftkitError
from peftkit.kernels.wide import wide

TRIED = 16
"""Tokens of the longer row."""
ROUNDING = {torch.float32: 1e-3}
"""How far the logits of a token may lie apart by rounding, as a part of them; half of them in half precision."""


def check_order(model: nn.Module, rows: Sequence[Encoded], device: torch.device) -> None:
    """Refuse a model that fails on a row, or whose tokens see those behind them: it has no next token to learn."""
    ids, kind = rows[0].ids[:TRIED], type(model).__name__
    others = [index for index in ids if index != ids[-1]]
    with _evaluating(model):
        try:
            own = _logits(model, [ids], device=device)
        except (torch.OutOfMemoryError, PeftkitError):
            raise
        except FAULTS as error:
            text = " ".join(str(error).split())
            raise PeftkitError(
                f"model: {kind} fails on a row of {len(ids)} tokens ({text[:200]}): its configuration, or the "
                "dtype, does not fit its code."
            ) from error
        if not others:
            return
        changed = _logits(model, [[*ids[:-1], others[-1]]], device=device)
    if _apart(own[0, :-1], changed[0, :-1]) > ROUNDING[torch.float32] / 10:
        raise PeftkitError(
            f"model: tokens of this {kind} see those behind them, so that predicting the next one teaches nothing: "
            "take a decoder, whose tokens see what is before them, or objective: classification."
        )


def check_padding(model: nn.Module, rows: Sequence[Encoded], pad_id: int, device: torch.device) -> None:
    """Refuse a model that computes something else for a row that is padded to the length of another one."""
    ids = rows[0].ids[:TRIED]
    ids = ids if len(ids) > 1 else ids * 2
    short = ids[: (len(ids) + 1) // 2]
    batch = collate([Encoded(row, row) for row in (short, ids)], pad_id)
    with _evaluating(model):
        own = _logits(model, [short], device=device)[0]
        padded = _logits(model, batch.input_ids, batch.attention_mask, device=device)[0, : len(short)]
    if _apart(own, padded) > ROUNDING.get(own.dtype, 0.5):
        raise PeftkitError(
            f"model: {type(model).__name__} computes something else for a row that is padded on the right, as longer "
            "ones are beside it: set train.batch_examples=1 (and raise train.accumulation)."
        )


def crosses(engine: Any, packed: PackedBatch) -> bool:
    """Say whether any row of flat tokens depends on the first one: their gradient then reaches its embeddings."""
    made: list[Tensor] = []

    def follow(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        made.append(output.detach().requires_grad_())
        return made[-1]

    assert packed.tree is not None
    first = len(packed.tree.rows[0])
    handle = engine.model.get_input_embeddings().register_forward_hook(follow)
    try:
        with torch.enable_grad():
            hidden = engine.head.hidden(**packed.inputs)
            later = hidden[:, first:]
            given = torch.randn(later.shape, generator=torch.Generator().manual_seed(0)).to(later)
            (gradient,) = torch.autograd.grad(later, made[:1], given)
    finally:
        handle.remove()
    return bool(gradient[:, :first].any())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _logits(model: Any, ids: Any, mask: Tensor | None = None, *, device: torch.device) -> Tensor:
    """Run the model on ids [B, T]; without a mask none is padding."""
    ids = torch.as_tensor(ids, device=device)
    mask = torch.ones_like(ids) if mask is None else mask.to(device)
    return logits_of(model(input_ids=ids, attention_mask=mask, use_cache=False))


def _apart(one: Tensor, other: Tensor) -> float:
    """Return how far the logits [T, V] of most tokens lie apart, as a part of them.

    Single tokens may lie farther apart by rounding, where it sends them to other experts.
    """
    distances = (wide(one) - wide(other)).norm(dim=-1) / wide(one).norm(dim=-1).clamp(min=1e-12)
    return float(distances.median())
