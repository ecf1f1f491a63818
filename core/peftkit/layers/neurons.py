"""A change of a feed-forward weight by its neurons: all of them, and in the end those that learn, as one block."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftkit.layers.sparse import DenseDelta
from peftkit.layout import Site
from peftkit.ports.adapter import Call
from peftkit.ports.linear import linear


class Neurons(DenseDelta):
    """A change w [out, in] by neuron, and in the end the `block` [k, width] of the `neurons` [k] that learn."""

    learning: Tensor
    chosen: Tensor
    neurons: Tensor
    block: nn.Parameter

    def __init__(self, site: Site):
        super().__init__(site)
        self.down = site.role == "down"
        self.register_buffer("learning", torch.ones(site.inputs if self.down else site.outputs, dtype=torch.bool))
        self.register_buffer("chosen", torch.zeros(1, dtype=torch.bool))
        self.gathered = False

    def change(self) -> Tensor:
        if not self.gathered:
            return self.w * (self.learning if self.down else self.learning[:, None])
        rows = self.block.new_zeros(self.site.inputs if self.down else self.site.outputs, self.block.shape[1])
        rows = rows.index_put((self.neurons.long(),), self.block)
        return rows.T if self.down else rows

    def forward(self, call: Call, x: Tensor) -> Tensor:
        if not self.gathered:
            return super().forward(call, x)
        y, places = call(x), self.neurons.long()
        if self.down:
            return y + linear(x[..., places], self.block.T)
        return y.index_add(-1, places, linear(x, self.block).to(y.dtype))

    def moved(self) -> Tensor:
        """Return the sum of |w| over the row or column of each neuron."""
        return self.w.abs().sum(0 if self.down else 1)

    def learn(self, neurons: Tensor, rewinds: bool) -> None:
        """Have these neurons alone change, from zero where it `rewinds`."""
        self.learning.zero_()
        self.learning[neurons] = True
        self.chosen.fill_(True)
        if rewinds:
            self.w.zero_()

    def gather(self) -> None:
        """Leave the rows or columns of the neurons that learn as one block."""
        neurons = self.learning.nonzero().flatten()
        rows = self.w.detach().T if self.down else self.w.detach()
        self._become(neurons.int(), rows[neurons])

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        block, neurons = tensors.get("block"), tensors.get("neurons")
        if block is not None and neurons is not None and block.ndim == 2:
            width = self.site.outputs if self.down else self.site.inputs
            self._become(torch.zeros(len(neurons), dtype=torch.int32), torch.zeros(len(block), width))

    def _become(self, neurons: Tensor, rows: Tensor) -> None:
        device = next(tensor.device for tensor in (self.w, getattr(self, "block", None)) if tensor is not None)
        self.gathered, self.block = True, nn.Parameter(rows.to(device))
        self.register_buffer("neurons", neurons.to(device))
        for key in ("w", "learning", "chosen"):
            setattr(self, key, None)
