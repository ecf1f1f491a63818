"""Soft prompts that are made for each example, of its prompt."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from peftkit.layers.prompt_places import absent, put_rows
from peftkit.ports.adapter import Call
from peftkit.ports.embedding import SoftPrompt


class ExamplePrompt(SoftPrompt):
    """Gives the ids rows of the example's own: a subclass says which by `rows_of`.

    Soft rows stand in front of the text, so that what is kept of them in a cache is all that later tokens need.
    """

    reads: ClassVar[Literal["", "tokens", "prompt"]] = "prompt"

    def rows_of(self, y: Tensor, prompt: Tensor) -> Tensor:
        """Return the rows [B, length, width] for embeddings y [B, T, width], of which `prompt` [B, T] are to be read.

        A row of the batch without a token of a prompt may get anything that is finite.
        """
        raise TypeError(f"{type(self).__name__} does not define its rows")

    def forward(self, call: Call, x: Tensor) -> Tensor:
        soft = self.places(x)
        y = call(x.masked_fill(soft, 0))
        if absent(~soft) and not torch.is_grad_enabled():
            return y
        rows = self.tell(self.rows_of(y, self.tokens.prompt))
        return put_rows(y, rows, torch.where(soft, x - self.first, -1))


def mean_over(y: Tensor, prompt: Tensor) -> Tensor:
    """Return the mean [B, width], at least in fp32, of the tokens of y [B, T, width] where `prompt` [B, T] is True.

    It is zero where that is True of none.
    """
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    weights = prompt.to(y.dtype)
    return torch.einsum("bt,btd->bd", weights / weights.sum(1, keepdim=True).clamp(min=1), y)
