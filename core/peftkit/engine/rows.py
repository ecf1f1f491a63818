"""Whether a model computes rows of text as training takes them: no token sees those behind it, and padding is nothing.

Both are tried before a run, as a model's own code may do otherwise: one that is no language model of the usual kind
shows each token the next one, which is then no prediction; one that is made for padding on the left moves a row by the
padding on its right; and one that attends to the best of all keys takes others of equal score in a wider row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from peftkit.data.batches import Batch, collate
from peftkit.data.encode import Encoded
from peftkit.data.rows import lengths_of
from peftkit.engine.head import logits_of
from peftkit.engine.packed_batch import PackedBatch, padded
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


def moved_by_padding(engine: Any, rows: Sequence[Encoded], pad_id: int, device: torch.device) -> str | None:
    """Say why a padded row may not be computed as it is by itself; None where padding is nothing.

    It is tried on the longest of `rows` and the first half of it, as some models do otherwise in long rows alone. Top-k
    over what grows with a row counts whatever its scores are: of equal ones, those it takes change with the width.
    """
    ids = rows[int(lengths_of(rows).argmax())].ids
    ids = ids if len(ids) > 1 else ids * 2
    short, kind = ids[: (len(ids) + 1) // 2], type(engine.model).__name__
    alone, both = (collate([Encoded(row, row) for row in chosen], pad_id) for chosen in ([short], [short, ids]))
    with _evaluating(engine.model):
        (own, few), (moved, many) = (_ranked(engine, batch, device) for batch in (alone, both))
    if many - few:
        return f"{kind} takes the best of what grows with a row"
    if _apart(own[0], moved[0, : len(short)]) > ROUNDING.get(own.dtype, 0.5):
        return f"{kind} computes something else for a row that is padded on the right"
    return None


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


class _Ranks(TorchDispatchMode):
    """Counts the choices of some of several entries inside, by how many entries there are."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.topk:
            entries = args[0].shape[args[2] if len(args) > 2 else -1]
            self.counts[entries] += args[1] < entries
        return func(*args, **(kwargs or {}))


def _ranked(engine: Any, batch: Batch, device: torch.device) -> tuple[Tensor, Counter[int]]:
    """Return the hidden states of a batch, or the logits of a model that is not taken apart, and what it ranks."""
    at = padded(batch).to(device)
    with _Ranks() as ranks, engine.running(at):
        made = engine.hidden(at) if engine.head is not None else logits_of(engine.model(**at.inputs, use_cache=False))
    return made, ranks.counts


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
