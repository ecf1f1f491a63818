"""A GGUF file: which tensors it holds and where they lie, and each of them unpacked as it is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.files import explained

MAGIC = b"GGUF"
PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
"""The types of GGUF that hold values, by their numbers there; every other one holds blocks."""


class TensorPlace(NamedTuple):
    """Where a tensor lies in the file, and in what form."""

    kind: int
    """The number of its type."""
    shape: tuple[int, ...]
    """Rows first, as torch has it."""
    offset: int
    size: int


class Header(NamedTuple):
    """What a file says before its tensors."""

    architecture: str
    has_tokenizer: bool
    places: dict[str, TensorPlace]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the values were written in; fp32 for what is unpacked from blocks."""
        counts: dict[int, int] = {}
        for place in self.places.values():
            counts[place.kind] = counts.get(place.kind, 0) + math.prod(place.shape)
        return PLAIN.get(max(counts, key=lambda kind: counts[kind]), torch.float32)


def read_header(path: Path) -> Header:
    """Read what `path` says of itself; PeftkitError for a file that is damaged, truncated, split or no GGUF."""
    from gguf import GGUFReader

    with explained("read", path), path.open("rb") as file:
        begin = file.read(len(MAGIC))
    if begin != MAGIC:
        raise PeftkitError(f"model: {path} is no GGUF file: it begins with {begin!r}, and GGUF with {MAGIC!r}.")
    try:
        reader = GGUFReader(path)
        parts = int(_value(reader, "split.count") or 1)
        architecture = _value(reader, "general.architecture")
        places = {
            tensor.name: TensorPlace(
                int(tensor.tensor_type),
                tuple(int(size) for size in reversed(tensor.shape)),
                int(tensor.data_offset),
                int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        }
    except Exception as error:  # the library reads past the end of a short file in every way
        raise damaged(path, str(error) or type(error).__name__) from None
    end = max((place.offset + place.size for place in places.values()), default=0)
    if not isinstance(architecture, str) or not places:
        raise damaged(path, "it names no architecture" if places else "it holds no tensors")
    if end > path.stat().st_size:
        raise damaged(path, f"its tensors end at byte {end:,}, and it at {path.stat().st_size:,}")
    if parts > 1:
        raise PeftkitError(
            f"model: {path} is one of {parts} parts of a model, which transformers cannot open: join them "
            "(`llama-gguf-split --merge` does it)."
        )
    return Header(architecture, "tokenizer.ggml.tokens" in reader.fields, places)


def _value(reader: Any, key: str) -> Any:
    """Return what the file holds under a key, or None."""
    return reader.fields[key].contents() if key in reader.fields else None


def damaged(path: Path, reason: str) -> PeftkitError:
    """Say that a file cannot be read."""
    reason = " ".join(reason.split()).rstrip(".")
    return PeftkitError(f"model: {path} is truncated or damaged and cannot be read as GGUF ({reason}). Copy it again.")


class _Named:
    """A model as far as its names: transformers' reader asks each module in it, which takes a minute for some hundred.

    What it finds in the model and in its body is what checkpoints of today have.
    """

    def __init__(self, model: Any):
        self.config, self._state = model.config, model.state_dict()
        body, prefix = getattr(model, "base_model", model), getattr(model, "base_model_prefix", "")
        self._children = [] if body is model else [(prefix, _Named(body))]

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors by name."""
        return self._state

    def named_children(self) -> list[tuple[str, _Named]]:
        """Return the body of a model."""
        return self._children


class GgufTensors:
    """The tensors of a GGUF file by the names that `model` has for them, each unpacked to fp32 as it is read.

    What a model of transformers calls a tensor, and what form it has there, transformers' own reader tells. A tensor
    that a model does not have is left out, as there. Of an architecture whose tensors that reader puts together from
    several, as those of experts, none has a name of the model: transformers has to read such a file whole.
    """

    def __init__(self, path: Path, header: Header, model: nn.Module):
        from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

        self.path = path
        config: Any = model.config
        kind = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
        self._processor: Any = kind(config=config.to_dict())
        self._plain = kind.process is TensorProcessor.process
        together = kind.perform_fallback_tensor_mapping is not TensorProcessor.perform_fallback_tensor_mapping
        named = cast(Any, _Named(model))
        whole = together or header.architecture in GGUF_ARCHS
        self._map: dict[str, str] = {} if whole else get_gguf_hf_weights_map(named, self._processor)
        self._places: dict[str, tuple[str, TensorPlace]] = {}
        for key, place in sorted(header.places.items(), key=lambda item: item[1].offset):
            if whole:
                self._places[f"{key} to be converted"] = (key, place)
            elif key in self._map:
                self._places[self._map[key]] = (key, place)

    @property
    def names(self) -> list[str]:
        """The tensors' names, in the order of their bytes."""
        return list(self._places)

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor as the model has it."""
        key, place = self._places[name]
        if self._plain:
            return list(place.shape)
        return list(self._converted(key, np.broadcast_to(np.float32(-1), place.shape)).shape)

    def read(self, name: str, index: int | None = None) -> Tensor:
        """Read one tensor, or of a stack the one with this number."""
        from gguf import GGMLQuantizationType, dequantize
        from gguf.quants import quant_shape_to_byte_shape

        key, place = self._places[name]
        with explained("read", self.path), self.path.open("rb", buffering=0) as file:
            file.seek(place.offset)
            content = np.fromfile(file, dtype=np.uint8, count=place.size)
        if content.size < place.size:
            raise damaged(self.path, f"it ends within {key}")
        kind = GGMLQuantizationType(place.kind)
        try:
            values = dequantize(content.reshape(quant_shape_to_byte_shape(place.shape, kind)), kind)
        except NotImplementedError:
            raise PeftkitError(
                f"model: {self.path} holds {key} as {kind.name}, which the package gguf does not unpack: name a file "
                "of another type."
            ) from None
        tensor = torch.from_numpy(np.ascontiguousarray(self._converted(key, values)))
        return tensor if index is None else tensor[index]

    def _converted(self, key: str, values: np.ndarray) -> np.ndarray:
        """Give a tensor the form that it has in the model."""
        return self._processor.process(weights=values, name=key, parsed_parameters={"tensors": {}}).weights
