"""The ways to load a model, one file each: `load(request, files)` returns the model with its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from peftkit.layout import Layout
from peftkit.models import allocation
from peftkit.models import tokenizer as tokenizers
from peftkit.models.fingerprint import fingerprint
from peftkit.models.loaded import LoadedModel
from peftkit.models.quantize import Quantization, quantize
from peftkit.models.weights import Weights
from peftkit.quantization.weight import dense
from peftkit.recipe import ModelSection


@dataclass(frozen=True)
class Request:
    """What is to be loaded, and how."""

    section: ModelSection
    device: torch.device
    dtype: torch.dtype | None
    """None follows the section."""
    weights: bool
    """Whether weights are read; without them the model is on the meta device."""
    quantization: Quantization
    budget: float | None
    """Bits a weight, for which the formats are chosen."""

    @property
    def packs(self) -> bool:
        """Whether any weight is to be packed."""
        return self.quantization.packs or self.budget is not None

    @property
    def fingerprint_dtype(self) -> torch.dtype | None:
        """The dtype in which a fingerprint takes the weights, so that merging in fp32 knows a base used in float16."""
        return None if self.section.dtype == "auto" else getattr(torch, self.section.dtype)

    def dtype_of(self, own: torch.dtype | None) -> torch.dtype:
        """Return the dtype to load a checkpoint in `own` with.

        `auto` is fp32 on the CPU, and elsewhere the checkpoint's own (bfloat16 for float16).
        """
        if self.dtype is not None:
            return self.dtype
        if self.section.dtype != "auto":
            return getattr(torch, self.section.dtype)
        if self.device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if own == torch.float16 else own or torch.float32


@dataclass(frozen=True)
class ModelFiles:
    """A model's files, with what is read from them before any weight."""

    folder: Path
    """With config.json and what else describes the model."""
    config: PretrainedConfig
    tokenizer: Any
    weights: Weights

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that config.json names."""
        return cast(Any, self.config).dtype


def ready(
    request: Request,
    model: PreTrainedModel,
    tokenizer: Any,
    *,
    name: str | None = None,
    weights: Weights | None = None,
    mark: str | None = None,
    storage: dict[str, Any] | None = None,
) -> LoadedModel:
    """Bring a model to its device, in eval mode, and pack it; `mark` is the fingerprint where it is known.

    `weights` are those that were read; None for random ones. With `storage`, how its weights are stored, they are not
    packed here. Raises PeftkitError for a tokenizer with ids beyond the token embedding.
    """
    rows = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    tokenizers.check_size(tokenizer, rows, "model.init" if weights is None else str(weights.place))
    if not next(model.parameters()).is_meta:
        cast(nn.Module, model).to(request.device)
    mark = mark or fingerprint(cast(nn.Module, model), request.fingerprint_dtype)
    loaded = LoadedModel(model.eval(), tokenizer, name or str(request.section.name), mark)
    if weights is not None:
        loaded.source = weights.source
        loaded.unpacked = weights.dtype if weights.unpacks else None
    if storage is None:
        _pack(loaded, request)
    else:
        loaded.storage = storage
    return loaded


def _pack(loaded: LoadedModel, request: Request) -> None:
    """Pack a dense model; without weights a budget is allocated to weights that stand in for them."""
    model, chosen = loaded.module, request.quantization
    if request.budget is not None:
        layout = Layout(model)
        stacks = {site.id: site for site in layout.stacks}

        def read(path: str) -> Tensor:
            stack, _, index = path.rpartition(".")
            module = stacks[stack].each()[int(index)].module if stack in stacks else model.get_submodule(path)
            return dense(module)

        chosen = allocation.within(request.budget, chosen, layout, None if loaded.fingerprint is None else read)
    if chosen.packs:
        quantize(model, chosen)
        loaded.storage = chosen.description()


def with_settings(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Give a model that transformers has not read its folder's generation settings."""
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model
