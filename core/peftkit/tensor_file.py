"""A safetensors file read tensor by tensor into memory of its own, and one written from tensors where they lie.

A mapped file counts as resident until every view of it is gone; what is read here takes the tensor's bytes and no more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.files import explained, new_file

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorFile:
    """The tensors of one safetensors file by name, in the order of their bytes; none is read before it is asked for.

    Raises PeftkitError for a file that is missing, truncated or damaged.
    """

    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        self.path = path
        with explained("read", path), path.open("rb") as file:
            try:
                with safe_open(path, framework="pt"):  # checks sizes, dtypes and places against the file's length
                    pass
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(length))
            except (SafetensorError, ValueError) as error:
                raise self._damaged(error) from None
        header.pop("__metadata__", None)
        self._begin = 8 + length
        self._places = dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))

    @property
    def names(self) -> list[str]:
        """The tensors' names."""
        return list(self._places)

    def dtype(self, name: str) -> str:
        """Return the dtype of a tensor as the file names it, such as `BF16`."""
        return self._places[name]["dtype"]

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor."""
        return list(self._places[name]["shape"])

    def read(self, name: str, index: int | None = None) -> Tensor:
        """Read one tensor, or of a stack the one with this number."""
        place = self._places[name]
        if place["dtype"] not in DTYPES:
            raise self._damaged(f"the tensor {name} is of the dtype {place['dtype']}")
        dtype, shape = DTYPES[place["dtype"]], place["shape"] if index is None else place["shape"][1:]
        size = math.prod(shape) * dtype.itemsize
        content = torch.empty(size, dtype=torch.uint8)
        if size:
            with explained("read", self.path), self.path.open("rb", buffering=0) as file:
                file.seek(self._begin + place["data_offsets"][0] + size * (index or 0))
                _fill(file, memoryview(cast(Any, content.numpy())), self._damaged("it ends early"))
        return content.view(dtype).view(shape)

    def _damaged(self, reason: object) -> PeftkitError:
        return PeftkitError(
            f"{self.path} is truncated or damaged and cannot be read as safetensors ({reason}). "
            "Copy it again from where it was made, or use an earlier checkpoint."
        )


def _fill(file: Any, target: memoryview, short: PeftkitError) -> None:
    """Read until `target` is full: one call returns two gigabytes at most."""
    while target:
        count = file.readinto(target)
        if not count:
            raise short
        target = target[count:]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a whole file; one that is truncated or damaged is a PeftkitError."""
    file = TensorFile(path)
    return {name: file.read(name) for name in file.names}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    flat = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with new_file(path) as temporary:
        try:
            save_file(flat, temporary, dict(metadata or {"format": "pt"}))
        except SafetensorError as error:
            raise PeftkitError(f"cannot write {path}: {error}. Check that the disk has space.") from None
