"""What a micro-batch takes: the tokens that are computed of it, and those that packing and shared beginnings save."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from peftkit.engine.packed_batch import PackedBatch
from peftkit.training.loss import trained_positions

if TYPE_CHECKING:
    from peftkit.data.batches import Batches
    from peftkit.engine.engine import Engine
    from peftkit.training.loop import Loop
    from peftkit.training.windows import Planned

SAMPLED = 32
"""Micro-batches that are looked at to tell how much examples share, or which is the largest."""


class Counts(NamedTuple):
    """Of one micro-batch, or of the sum of several."""

    computed: int = 0
    """Tokens that go through the model; padding is among them where examples are padded."""
    predicted: int = 0
    """Positions with logits."""
    padding_saved: int = 0
    """Padding that the rows would have, were they padded to the longest of them."""
    shared_saved: int = 0
    """Tokens that are not computed, as a row before began alike."""


def counts(batch: Any, laid: Any) -> Counts:
    """Count a micro-batch; `laid` is what `Engine.lay` made of the padded `batch`."""
    if not isinstance(laid, PackedBatch):
        return Counts(laid.input_ids.numel(), len(laid.labels) * len(trained_positions(laid.labels)))
    computed, predicted = laid.inputs["input_ids"].numel(), len(laid.sources)
    if laid.tree is None:
        return Counts(computed, predicted)
    return Counts(computed, predicted, batch.input_ids.numel() - batch.tokens, laid.tree.saved)


def total(counted: Iterable[Counts]) -> Counts:
    """Add up the counts of micro-batches."""
    return Counts(*(sum(each) for each in zip(*counted, strict=True)))


def saved_parts(batches: Planned, engine: Engine, pad_id: int) -> dict[str, float]:
    """Return the parts, 0 to 1, of padded batches that are `padding` and not computed, and of the tokens `shared`.

    They are measured on the first micro-batches of the first epoch, laid out by `engine`.
    """
    counted, tokens, padded = [], 0, 0
    for indices in batches.plan(0)[:SAMPLED]:
        batch = batches.collate(indices, pad_id)
        counted.append(counts(batch, engine.lay(batch)))
        tokens, padded = tokens + batch.tokens, padded + batch.input_ids.numel()
    found = total(counted)
    return {"padding": round(found.padding_saved / padded, 4), "shared": round(found.shared_saved / tokens, 4)}


def largest_batch(loop: Loop) -> dict[str, int]:
    """Return the most `tokens` that are computed at once in the first epoch, and the optimizer `step` that does it.

    At most SAMPLED micro-batches are laid out: those with the most tokens before shared ones are left out.
    """
    batches, engine, accumulation = cast("Batches", loop.batches), loop.engine, loop.section.accumulation
    plan = batches.plan(0)[: loop.steps * accumulation]

    def bound(at: int) -> int:
        lengths = [batches.lengths[index] for index in plan[at]]
        return sum(lengths) if engine.arrangement.flat else max(lengths) * len(lengths)

    tokens = place = 0
    for at in sorted(range(len(plan)), key=bound, reverse=True)[:SAMPLED]:
        if bound(at) <= tokens:
            break
        batch = batches.collate(plan[at], loop.pad_id)
        computed = counts(batch, engine.lay(batch)).computed
        if computed > tokens:
            tokens, place = computed, at
    return {"tokens": tokens, "step": place // accumulation + 1}
