"""The port of input embeddings: ids beyond the vocabulary are rows of a soft prompt.

The data side writes these ids in front of a text (behind the beginning-of-sequence token where there is one), so that
labels, masks, positions, caches and generation of every model stay as they are. Other embeddings by token id, which
some families add in each layer, and layers that are given ids see the padding token there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftkit.layout import Site
from peftkit.ports.adapter import Adapter, Call


class SoftPrompt(Adapter):
    """Gives `length` ids, from `first` on, rows of its own: a subclass says which by `rows() -> [length, width]`."""

    def __init__(self, site: Site, length: int):
        super().__init__(site)
        self.length, self.row_size = length, site.outputs
        self.first = site.inputs
        """The id of the first row: the vocabulary size, or what follows the soft prompts attached before."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids that stand for the rows."""
        return tuple(range(self.first, self.first + self.length))

    @property
    def drawn(self) -> Tensor | None:
        """The trained rows [count, width] that start as words, and may start as others; None where none do."""
        return None

    def rows(self) -> Tensor:
        """Return the rows [length, width] in fp32, on the scale of the embedding's own output."""
        raise TypeError(f"{type(self).__name__} does not define its rows")

    def places(self, x: Tensor) -> Tensor:
        """Return which ids [B, T] are rows of this prompt; adapters with the same `shared` find their numbers."""
        soft = (x >= self.first) & (x < self.first + self.length)
        if self.shared is not None:
            self.context.tape[self.shared] = torch.where(soft, x - self.first, -1)
        return soft

    def forward(self, call: Call, x: Tensor) -> Tensor:
        soft = self.places(x)
        y = call(x.masked_fill(soft, 0))
        rows = self.tell(self.rows())
        mine = F.embedding((x - self.first).clamp(0, self.length - 1), rows)
        return torch.where(soft.unsqueeze(-1), mine.to(y.dtype), y)


def pad(table: nn.Embedding, first: int, padding: int) -> RemovableHandle:
    """Have an embedding that has no soft rows read `padding` for ids from `first` on, until the handle is removed."""

    def replaced(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args[0].masked_fill(args[0] >= first, padding), *args[1:]

    return table.register_forward_pre_hook(replaced)


def pad_ids(layer: nn.Module, first: int, padding: int) -> RemovableHandle:
    """Have a layer that is given token ids by name read `padding` for ids from `first` on, as `pad` does."""

    def replaced(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids = named.get("input_ids")
        return args, named if ids is None else {**named, "input_ids": ids.masked_fill(ids >= first, padding)}

    return layer.register_forward_pre_hook(replaced, with_kwargs=True)
