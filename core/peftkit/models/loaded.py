"""A base model in memory with its tokenizer, and what is known of where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peftkit.models import configuration, packed_folder
from peftkit.models import folder as folders
from peftkit.models.quantize import Quantization
from peftkit.quantization.storage import is_foreign

ModelAndTokenizer = tuple[PreTrainedModel, PreTrainedTokenizerBase]
"""What transformers' `generate` and pipelines take."""


@dataclass
class LoadedModel:
    """A base model in eval mode with its tokenizer."""

    model: PreTrainedModel
    tokenizer: Any
    name: str
    fingerprint: str | None
    """None on the meta device."""
    source: Path | None = None
    """The folder with the original files; None for random weights, and for those of a file without a folder."""
    unpacked: torch.dtype | None = None
    """The dtype that the original weights count as where each was unpacked as it was read."""
    storage: dict[str, Any] = field(default_factory=lambda: Quantization().description())
    """How the weights are stored: format, its options, and formats of modules by pattern."""
    masks: dict[str, Tensor] = field(default_factory=dict)
    """Which weights are left of the maps that are pruned, by their paths, as `models.prune` has them."""

    @property
    def module(self) -> nn.Module:
        """The model, for type checkers that know a transformers model as no module."""
        return cast(nn.Module, self.model)

    @property
    def description(self) -> dict[str, Any]:
        """What an adapter's file says of its base."""
        return {"name": self.name, "fingerprint": self.fingerprint, "quantization": self.storage}

    @property
    def has_originals(self) -> bool:
        """Whether the weights can be had as they were before they were packed."""
        return self.source is None or not (packed_folder.is_packed(self.source) or is_foreign(self.storage))

    @property
    def original_dtype(self) -> torch.dtype:
        """The dtype of the original weights; of a folder of packed ones, what its config.json says of them."""
        if self.source is None:
            return self.unpacked or torch.float32
        if self.has_originals:
            return folders.stored_dtype(folders.shards(self.source))
        return cast(Any, configuration.from_folder(self.source)).dtype or torch.float32
