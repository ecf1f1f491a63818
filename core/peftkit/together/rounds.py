"""Forward and backward passes of several runs at once: their tokens stand one after the other in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from peftkit.device import autocast
from peftkit.engine.packed_batch import PackedBatch
from peftkit.errors import PeftkitError
from peftkit.ports.attention import along
from peftkit.ports.context import Routing, context_of
from peftkit.training.loop import Begun, Loop, out_of_memory


def accumulate(model: nn.Module, running: Mapping[str, tuple[Loop, Begun]]) -> dict[str, float]:
    """Find the gradients of one step of each run, by its adaptation's name; returns the losses per trained token.

    The passes pair the micro-batches of all windows by their place; a run with fewer of them is absent from the rest.
    A loss may be infinite or NaN: the other runs' losses and gradients are not touched by it.
    """
    model.train()
    totals: dict[str, Tensor] = {}
    try:
        for place in range(max(len(begun.batches) for _, begun in running.values())):
            present = {name: both for name, both in running.items() if place < len(both[1].batches)}
            for name, loss in _pass(model, present, place).items():
                totals[name] = totals[name] + loss if name in totals else loss
        for loop, _ in running.values():
            penalty = loop.adaptation.penalty()
            if penalty is not None:
                penalty.backward()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise PeftkitError(
            f"the device ran out of memory on the micro-batches of {len(running)} runs at once: lower their "
            "train.batch_tokens (and raise train.accumulation), or train fewer of them together. The last checkpoints "
            "stay as they were."
        ) from None
    return {name: totals[name].item() / _trained(begun) for name, (_, begun) in running.items()}


def _pass(model: nn.Module, present: Mapping[str, tuple[Loop, Begun]], place: int) -> dict[str, Tensor]:
    """Run the micro-batch at `place` of each window forward and backward; returns the sums of their losses."""
    laid: dict[str, PackedBatch] = {}
    for name, (loop, begun) in present.items():
        laid[name] = loop.lay(begun, begun.batches[place])
    trees = [batch.tree for batch in laid.values() if batch.tree is not None]
    sizes = [len(tree.ids) for tree in trees]
    inputs = {
        key: torch.cat([batch.inputs[key] for batch in laid.values()], 1) for key in ("input_ids", "position_ids")
    }
    context = context_of(model)
    lead = next(iter(present.values()))[0]
    losses = {}
    with ExitStack() as stack:
        stack.enter_context(context.routed(Routing.of_tokens(list(zip(laid, sizes, strict=True)))))
        stack.enter_context(along(model, *trees))
        if all(loop.engine.arrangement.fused for loop, _ in present.values()):
            stack.enter_context(lead.engine.fused())
        with autocast(lead.device, lead.casts):
            assert lead.engine.head is not None
            hidden = lead.engine.head.hidden(**inputs).split(sizes, 1)
            for (name, (loop, _)), mine in zip(present.items(), hidden, strict=True):
                assert loop.engine.head is not None
                loop.engine.head.follow(lead.engine.head)
                with context.only(name):
                    losses[name] = loop.engine.loss_of(mine, laid[name], loop.section.label_smoothing)
        parts = [losses[name] / _trained(begun) for name, (_, begun) in present.items()]
        torch.stack(parts).sum().backward()
    return {name: loss.detach() for name, loss in losses.items()}


def _trained(begun: Begun) -> int:
    return max(1, sum(batch.trained for batch in begun.batches))
