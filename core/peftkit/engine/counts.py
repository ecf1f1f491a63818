"""What micro-batches take: the tokens that are computed of them, and those that packing and shared beginnings save."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from peftkit.data.batches import Batch, Batches
from peftkit.engine.engine import Engine
from peftkit.engine.packed_batch import PackedBatch

SAMPLED = 32
"""Micro-batches that are looked at to tell how much examples share, or which is the largest."""


class Counts(NamedTuple):
    """Of one micro-batch, or of the sum of several."""

    computed: int = 0
    """Tokens that go through the model; padding is among them where examples are padded."""
    padding_saved: int = 0
    """Padding that the rows would have, were they padded to the longest of them."""
    shared_saved: int = 0
    """Tokens that are not computed, as a row before began alike."""


def counts(batch: Batch, packed: PackedBatch) -> Counts:
    """Count a micro-batch; `packed` is what `Engine.pack` made of the padded `batch`."""
    computed = packed.inputs["input_ids"].numel()
    padding = batch.input_ids.numel() - batch.tokens
    if packed.tree is not None:
        return Counts(computed, padding, packed.tree.saved)
    return Counts(computed) if packed.lengths is None else Counts(batch.tokens, padding)


def total(counted: Iterable[Counts]) -> Counts:
    """Add up the counts of micro-batches."""
    return Counts(*(sum(each) for each in zip(*counted, strict=True)))


def saved_parts(batches: Batches, engine: Engine, pad_id: int) -> dict[str, float]:
    """Return the parts, 0 to 1, of padded batches that are `padding` and not computed, and of the tokens `shared`.

    They are measured on the first micro-batches of the first epoch, packed by `engine`.
    """
    counted, tokens, padded = [], 0, 0
    for indices in batches.plan(0)[:SAMPLED]:
        batch = batches.collate(indices, pad_id)
        counted.append(counts(batch, engine.pack(batch)))
        tokens, padded = tokens + batch.tokens, padded + batch.input_ids.numel()
    summed = total(counted)
    return {"padding": round(summed.padding_saved / padded, 4), "shared": round(summed.shared_saved / tokens, 4)}


def largest_batch(batches: Batches, engine: Engine, pad_id: int, accumulation: int, steps: int) -> dict[str, int]:
    """Return the most `tokens` that are computed at once in the first epoch, and the optimizer `step` that does it.

    At most SAMPLED micro-batches are packed: those with the most tokens before shared ones are left out.
    """
    plan = batches.plan(0)
    bounds = (batches.tokens if engine.arrangement.flat else batches.padded)(plan)[: steps * accumulation]
    tokens = place = 0
    for at in np.argsort(-bounds, kind="stable")[:SAMPLED].tolist():
        if bounds[at] <= tokens:
            break
        batch = batches.collate(plan[at], pad_id)
        computed = counts(batch, engine.pack(batch)).computed
        if computed > tokens:
            tokens, place = computed, at
    return {"tokens": tokens, "step": place // accumulation + 1}
