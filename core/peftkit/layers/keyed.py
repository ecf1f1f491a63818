"""Sets of adapters of which each token passes through that of its row's key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.keys import Keys
from peftkit.layers.bottleneck import Bottleneck
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.own_attention import hollow


class Keyed(Adapter):
    """The bottlenecks of one site, `sets` in the order of the keys: a token is given what its own one adds.

    Sets whose key no row of a batch has do not run, and get no gradient.
    """

    reads: ClassVar[Literal["", "tokens", "prompt"]] = "tokens"

    def __init__(self, sets: Sequence[Bottleneck], keys: Keys):
        super().__init__(sets[0].site)
        self.beside, self.keys = sets[0].beside, keys
        self.sets = nn.ModuleList(sets)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        return y + self.added(x if self.beside else y).to(y.dtype)

    def added(self, x: Tensor) -> Tensor:
        """Return what is added for hidden states x [..., width]; PeftkitError where a row has no key."""
        keys, flat = self.tokens.keys, x.reshape(-1, x.shape[-1])
        if keys is None or keys.numel() != len(flat):
            raise PeftkitError(
                f"the adapter at {self.site.id} is given {len(flat)} tokens, and their rows are not told."
            )
        if hollow(keys):
            return self._of(0).inner(x)
        keys = keys.reshape(-1)
        present = keys.unique().tolist()
        if present and not 0 <= present[0] <= present[-1] < len(self.sets):
            raise PeftkitError(
                f"the adapter at {self.site.id} is chosen by '{self.keys.field}', and a text has none. Allowed: "
                f"{', '.join(self.keys.names)}."
            )
        if len(present) == 1:
            return self._of(present[0]).inner(x)
        added = x.new_zeros(len(flat), self.site.outputs)
        for number in present:
            at = (keys == number).nonzero().flatten()
            added = added.index_copy(0, at, self._of(number).inner(flat[at]).to(added.dtype))
        return added.reshape(*x.shape[:-1], self.site.outputs)

    def _of(self, number: int) -> Bottleneck:
        return cast(Bottleneck, self.sets[number])
