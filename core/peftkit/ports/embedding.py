"""The port of input embeddings: ids beyond the vocabulary are rows of a soft prompt.

The data side writes these ids in front of a text (behind the beginning-of-sequence token where there is one), so that
labels, masks, positions, caches and generation of every model stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.ports.adapter import Adapter, Call


class SoftPrompt(Adapter):
    """Gives `length` ids, from `first` on, rows of its own: a subclass says which by `rows() -> [length, width]`."""

    def __init__(self, site: Site, length: int):
        super().__init__(site)
        self.length = length
        self.first = site.inputs
        """The id of the first row: the vocabulary size, or what follows the soft prompts attached before."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids that stand for the rows."""
        return tuple(range(self.first, self.first + self.length))

    def rows(self) -> Tensor:
        """Return the rows [length, width] in fp32, on the scale of the embedding's own output."""
        raise TypeError(f"{type(self).__name__} does not define its rows")

    def forward(self, call: Call, x: Tensor) -> Tensor:
        soft = (x >= self.first) & (x < self.first + self.length)
        y = call(x.masked_fill(soft, 0))
        mine = F.embedding((x - self.first).clamp(0, self.length - 1), self.rows())
        return torch.where(soft.unsqueeze(-1), mine.to(y.dtype), y)


HF_TENSOR = "prompt_embeddings"


def to_hf_peft(prompt: SoftPrompt, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration of the type `kind` and the tensor of Hugging Face peft for a soft prompt.

    That library puts its prompt in front of everything, also of a beginning-of-sequence token.
    """
    rows = prompt.rows().detach()
    config = {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": prompt.length,
        "token_dim": rows.shape[1],
        "num_transformer_submodules": 1,
        "inference_mode": True,
    }
    return config, {HF_TENSOR: rows}


def from_hf_peft(tensors: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Return the rows [length, width] of a soft prompt that Hugging Face peft saved, or refuse."""
    stray = next((key for key in tensors if key != HF_TENSOR), None)
    if stray is not None:
        raise PeftkitError(f"adapter_model.safetensors: the tensor '{stray}' is not part of a soft prompt.")
    rows, width = tensors.get(HF_TENSOR), layout.embedding().outputs
    if rows is None or rows.ndim != 2 or rows.shape[1] != width:
        given = "missing" if rows is None else f"of the shape {list(rows.shape)}"
        raise PeftkitError(f"adapter_model.safetensors: '{HF_TENSOR}' is {given}, and [length, {width}] is wanted.")
    return rows.float()
