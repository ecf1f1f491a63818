"""An adapter of whose change elements are dropped in training, whatever the adapter is."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from peftkit.kernels.low_rank import add_pair
from peftkit.ports.adapter import Adapter


class DroppedOut(Adapter):
    """y + dropout(adapter(y) - y) in training, with y the output of what the adapter stands around."""

    behind: type[Adapter]
    drop_share: float

    def forward(self, call: Any, *given: Tensor) -> Tensor:  # type: ignore[override]
        if not self.training:
            return self._computed(call, *given)
        if self.inside:
            # Inside attention an adapter need not ask for what there would be without it.
            without = call(*given)
            return without + F.dropout(self._computed(call, *given) - without, self.drop_share)
        heard: list[Tensor] = []

        def frozen(x: Tensor) -> Tensor:
            heard.append(call(x))
            return heard[-1]

        y = self._computed(frozen, *given)
        return heard[0] + F.dropout(y - heard[0], self.drop_share)

    def _computed(self, call: Any, *given: Tensor) -> Tensor:
        pair = self.behind.pair(self, *given) if self.behind.pair is not Adapter.pair else None
        return self.behind.forward(self, call, *given) if pair is None else add_pair(call(*given), pair)


def drop_out(adapter: Adapter, share: float) -> Adapter:
    """Have an adapter drop this share of the elements of its change; it stays what it is else."""
    adapter.__class__ = _class(type(adapter))
    adapter.__dict__["drop_share"] = share
    return adapter


@cache
def _class(cls: type[Adapter]) -> type[Adapter]:
    return type(f"DroppedOut{cls.__name__}", (DroppedOut, cls), {"behind": cls})
