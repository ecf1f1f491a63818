"""Seated linear layers of one input, computed together: queries, keys and values; the gate and the up projection.

Together they keep the input once, the first products of their low-rank pairs are one, and the gradient of the input is
summed up in place (`peftkit.kernels.low_rank`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.kernels.low_rank import Linear, Pair, add_pair, linears_with_pairs
from peftkit.layout import Layout
from peftkit.ports.around import may_be_pair
from peftkit.ports.seat import Seat

ROLES = (("q", "k", "v"), ("gate", "up"))
"""The roles in a layer that read one input, in the order in which models call them."""


class SharedInput:
    """Seated linear layers that a model gives one and the same tensor, in the order in which it calls them.

    The first that is called computes the outputs of all, and the others find theirs. `waiting` is one for all groups
    of a model: a pass that ends before all outputs are fetched leaves those of one group behind, and no more.
    """

    def __init__(self, members: Sequence[Seat], waiting: dict[Seat, tuple[Tensor, Tensor | Pair]]):
        self.members, self.waiting = list(members), waiting

    def output(self, member: Seat, x: Tensor) -> Tensor | None:
        """Return what a member makes of x [..., in]; None where it has to compute by itself."""
        given, ready = self.waiting.pop(member, (None, None))
        if given is x:
            return _with_pair(member, ready, x) if isinstance(ready, Pair) else ready
        if given is not None or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        self.waiting.clear()
        pair = _pair(member, x)
        return None if pair is None else self._from(member, pair, x)

    def _from(self, member: Seat, pair: Pair, x: Tensor) -> Tensor:
        """Compute a member, and with it those behind it that are pairs of x as well; others keep what they said."""
        if pair.inside is not x:
            return _with_pair(member, pair, x)
        joined = {member: pair}
        for other in self.members[self.members.index(member) + 1 :]:
            beside = _pair(other, x)
            if beside is not None and beside.inside is x:
                joined[other] = beside
            elif beside is not None:
                self.waiting[other] = x, beside
        linears = [cast(Linear, other.frozen_linear()) for other in joined]
        y, *outputs = linears_with_pairs(x, linears, [[pair] for pair in joined.values()])
        self.waiting.update(zip(list(joined)[1:], ((x, output) for output in outputs), strict=True))
        return y


def _pair(member: Seat, x: Tensor) -> Pair | None:
    """Return the pair that is all that runs on a member for every token; None where that is something else."""
    context = member.peftkit_context
    if context.routing is not None or member.frozen_linear() is None:
        return None
    adapter = member.only_adapter(context.active)
    return None if adapter is None else adapter.pair(x)


def _with_pair(member: Seat, pair: Pair, x: Tensor) -> Tensor:
    linear = cast(Linear, member.frozen_linear())
    if pair.inside is x:
        return linears_with_pairs(x, [linear], [[pair]])[0]
    return add_pair(F.linear(x, *linear), pair)


@contextmanager
def shared(groups: Sequence[SharedInput]) -> Iterator[None]:
    """Compute the members of each group together inside."""
    members = [(member, group) for group in groups for member in group.members]
    for member, group in members:
        member.__dict__["input_group"] = group
    try:
        yield
    finally:
        for member, group in members:
            del member.__dict__["input_group"]
            group.waiting.clear()


def groups_of(model: nn.Module) -> list[SharedInput]:
    """Return the seated linear layers of each layer that read one input, by their roles.

    What a pass gives them is compared: a member that is given another tensor computes by itself.
    """
    members: dict[tuple[str, tuple[str, ...]], list[Seat]] = {}
    for site in Layout(model).linears:
        roles, seat = next((roles for roles in ROLES if site.role in roles), None), site.module
        if roles is None or site.rows is not None or not isinstance(seat, Seat) or seat.frozen_linear() is None:
            continue
        if any(may_be_pair(adapter) for adapter in seat.running(tuple(seat.seated))):
            members.setdefault((site.path.rpartition(".")[0], roles), []).append(seat)
    waiting: dict[Seat, tuple[Tensor, Tensor | Pair]] = {}
    return [SharedInput(seats, waiting) for seats in members.values() if len(seats) > 1]
