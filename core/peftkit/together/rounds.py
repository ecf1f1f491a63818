"""Passes of several runs at once: their tokens stand one after the other in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import reduce

import torch

from peftkit.data.batches import Batch
from peftkit.device import autocast
from peftkit.engine.counts import Counts, counts
from peftkit.engine.packed_batch import PackedBatch
from peftkit.engine.passes import Passes, Plain, Result, Wrapper, out_of_memory, result
from peftkit.errors import PeftkitError
from peftkit.objectives import Loss
from peftkit.ports.attention import along
from peftkit.ports.context import Routing, context_of


@dataclass
class Member:
    """One step of one of the runs: what is to be computed, and what has been."""

    plain: Plain
    batches: Sequence[Batch]
    normaliser: int
    losses: list[Loss] = field(default_factory=list)
    counted: list[Counts] = field(default_factory=list)

    def pack(self, place: int) -> PackedBatch:
        """Pack the micro-batch at a place and count it."""
        packed = self.plain.engine.pack(self.batches[place])
        self.counted.append(counts(self.batches[place], packed))
        return packed.to(self.plain.device)

    @property
    def result(self) -> Result:
        """What the passes came to."""
        return result(self.losses, reduce(torch.add, [loss.sum for loss in self.losses]).item(), self.counted)


class Done(Wrapper):
    """The passes of a run whose gradients are there already."""

    def __init__(self, inner: Passes, done: Result):
        super().__init__(inner)
        self.done = done

    def backward(self, batches: Sequence[Batch], normaliser: int) -> Result:
        """Return what they came to."""
        return self.done


def backward_together(members: Mapping[str, Member]) -> None:
    """Add the gradients of a step of each run, by its adaptation's name, and what they came to.

    The passes pair the micro-batches of all steps by their place; a run with fewer of them is absent from the rest.
    A loss may be infinite or NaN: the other runs' losses and gradients are not touched by it.
    """
    next(iter(members.values())).plain.engine.model.train()
    try:
        for place in range(max(len(member.batches) for member in members.values())):
            _pass({name: member for name, member in members.items() if place < len(member.batches)}, place)
        for member in members.values():
            member.plain.add_penalty()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise PeftkitError(
            f"the device ran out of memory on the micro-batches of {len(members)} runs at once: lower their "
            "train.batch_tokens (and raise train.accumulation), or train fewer of them together. The last checkpoints "
            "stay as they were."
        ) from None


def _pass(present: Mapping[str, Member], place: int) -> None:
    """Run the micro-batch at `place` of each step forward and backward."""
    packed = {name: member.pack(place) for name, member in present.items()}
    trees = [batch.tree for batch in packed.values() if batch.tree is not None]
    sizes = [len(tree.ids) for tree in trees]
    inputs = {
        key: torch.cat([batch.inputs[key] for batch in packed.values()], 1) for key in ("input_ids", "position_ids")
    }
    lead = next(iter(present.values())).plain
    context = context_of(lead.engine.model)
    losses: dict[str, Loss] = {}
    with ExitStack() as stack:
        stack.enter_context(context.routed(Routing.of_tokens(list(zip(packed, sizes, strict=True)))))
        stack.enter_context(along(lead.engine.model, *trees))
        if all(member.plain.engine.arrangement.fused for member in present.values()):
            stack.enter_context(lead.engine.fused())
        with autocast(lead.device, lead.casts):
            assert lead.engine.head is not None
            hidden = lead.engine.head.hidden(**inputs).split(sizes, 1)
            for (name, member), mine in zip(present.items(), hidden, strict=True):
                plain = member.plain
                assert plain.engine.head is not None
                plain.engine.head.share_memory(lead.engine.head)
                with context.only(name):
                    outputs = plain.engine.outputs(mine, packed[name], plain.module)
                    losses[name] = plain.objective.loss(outputs, packed[name])
        torch.stack([losses[name].sum / member.normaliser for name, member in present.items()]).sum().backward()
    for name, member in present.items():
        member.losses.append(losses[name]._replace(sum=losses[name].sum.detach()))
