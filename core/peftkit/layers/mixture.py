"""Copies of an adapter of which each pass takes parts by chance, and whose mean stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from peftkit.layers.wrapped import Wrapped
from peftkit.ports.adapter import Adapter


class Mixture(Wrapped):
    """Copies [copies, ...] of each tensor of an adapter, those of vectors in one line.

    A matrix and the vectors behind it are one block, of which a pass in training takes one copy; outside training the
    means of all copies run. Of the first block (`shared: down`) or the last (`up`) there is one for all.
    """

    def __init__(self, copies: Sequence[Adapter], shared: str, pick: Callable[[Mixture, int], int]):
        super().__init__(copies[0])
        self.pick, self.count = pick, len(copies)
        self.blocks: dict[str, int] = {}
        self.shapes: dict[str, torch.Size] = {}
        block = -1
        for key, parameter in self.plain.named_parameters():
            block += parameter.ndim > 1
            self.blocks[key], self.shapes[key] = max(block, 0), parameter.shape
        one = {"down": 0, "up": max(block, 0)}.get(shared)
        self.blocks = {key: number for key, number in self.blocks.items() if number != one}
        for key in self.blocks:
            stack = torch.stack([copy.get_parameter(key).detach() for copy in copies])
            self._put(key, stack.flatten() if len(self.shapes[key]) < 2 else stack)

    def forward(self, call: Any, *given: Tensor) -> Tensor:  # type: ignore[override]
        if not self.blocks:
            return self.plain(call, *given)
        taken = {key: self._taken(key, block) for key, block in self.blocks.items()}
        return functional_call(self.plain, taken, (call, *given))

    def average(self) -> None:
        """Put the means of the copies in the place of them, under the names of one adapter's tensors."""
        for key in list(self.blocks):
            self._put(key, self._copies(key).detach().mean(0))
        self.blocks.clear()

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.plain.merge(weight, bias)

    def _taken(self, key: str, block: int) -> Tensor:
        copies = self._copies(key)
        return copies[self.pick(self, block)] if self.training else copies.mean(0)

    def _copies(self, key: str) -> Tensor:
        return self.tensor(key).view(self.count, *self.shapes[key])

    def _put(self, key: str, value: Tensor) -> None:
        owner, leaf = self.owner(key)
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=self.tensor(key).requires_grad)
