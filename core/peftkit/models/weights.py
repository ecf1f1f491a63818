"""The files in which a model's original weights lie, and what can be done with them whatever their form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.quantization_config import GgufConfig

from peftkit.models import build
from peftkit.models import folder as folders
from peftkit.models.gguf_file import GgufTensors
from peftkit.models.gguf_folder import GgufFolder
from peftkit.models.plain import forget_quantization
from peftkit.tensor_file import TensorFile, Tensors


class Weights(ABC):
    """The original weights of a model; nothing is read before it is asked for."""

    unpacks: ClassVar[bool]
    """Whether each tensor is unpacked as it is read, so that a model is read tensor by tensor where it can be."""

    @property
    @abstractmethod
    def place(self) -> Path:
        """What a person named."""

    @property
    @abstractmethod
    def description(self) -> Path:
        """The folder with config.json."""

    @property
    def source(self) -> Path | None:
        """The model folder, of which what stays as it was is copied; None where there is none."""
        return None

    @property
    @abstractmethod
    def paths(self) -> list[Path]:
        """The files; PeftkitError where one is missing."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of most of the values."""

    @abstractmethod
    def opened(self, model: nn.Module) -> Sequence[Tensors]:
        """Return the tensors of each file, as `model`, built without weights, has them or may find them."""

    @abstractmethod
    def whole(self, config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
        """Read the model with transformers."""


@dataclass(frozen=True)
class FolderWeights(Weights):
    """Safetensors files in a model folder."""

    unpacks: ClassVar[bool] = False
    folder: Path

    @property
    def place(self) -> Path:
        return self.folder

    @property
    def description(self) -> Path:
        return self.folder

    @property
    def source(self) -> Path | None:
        return self.folder

    @cached_property
    def paths(self) -> list[Path]:
        return folders.shards(self.folder)

    @cached_property
    def dtype(self) -> torch.dtype:
        return folders.stored_dtype(self.paths)

    def opened(self, model: nn.Module) -> Sequence[Tensors]:
        return [TensorFile(path) for path in self.paths]

    def whole(self, config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
        return build.read_whole(self.folder, config, dtype, trust_remote_code)


@dataclass(frozen=True)
class GgufWeights(Weights):
    """One GGUF file."""

    unpacks: ClassVar[bool] = True
    file: GgufFolder

    @property
    def place(self) -> Path:
        return self.file.path

    @property
    def description(self) -> Path:
        return self.file.folder

    @property
    def paths(self) -> list[Path]:
        return [self.file.path]

    @property
    def dtype(self) -> torch.dtype:
        return self.file.header.dtype

    def opened(self, model: nn.Module) -> Sequence[Tensors]:
        return [GgufTensors(self.file.path, self.file.header, model)]

    def whole(self, config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
        path = self.file.path
        plain = {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
        model = build.read_whole(path.parent, config, dtype, trust_remote_code, **plain)
        forget_quantization(model)
        return model
