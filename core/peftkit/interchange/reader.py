"""What reads the adapter folders of one library, and which one a folder is for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.layers.bottleneck import ACTIVATIONS, Activation
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.registry import Registry
from peftkit.tensor_file import TensorFile

FUNCTIONS = {"swish": "silu", "gelu_orig": "gelu", "gelu_pytorch_tanh": "gelu_new"}
"""Our names of functions that other libraries call otherwise."""


@dataclass(frozen=True)
class ReadAdapter:
    """What a folder holds, in the words of this project."""

    methods: Sequence[Method]
    tensors: Mapping[str, Tensor]
    """By `<method's position>/<site>/<tensor>`, as `State.state` has them."""
    in_front: bool = False
    """Whether rows of a soft prompt stand in front of a token that opens every text, behind which they stand here."""


class FolderReader:
    """Reads the folders of one library, which `files` tell from those of others.

    `tensors` is the file with the tensors and `pickled` the one which the library writes in its place; a pickle runs
    code where it is opened and is never read.
    """

    library: str
    configuration: str
    tensors: str
    pickled: str

    def claims(self, folder: Path) -> bool:
        """Say whether a folder is one of this library's."""
        raise TypeError(f"{type(self).__name__} does not define what it claims")

    def base(self, folder: Path) -> tuple[str | None, str | None]:
        """Return the name and the revision of the model that the adapter was trained on, as far as it tells them."""
        return None, None

    def read(self, folder: Path, layout: Layout) -> ReadAdapter:
        """Return what the folder holds for a model; PeftkitError for what would compute something else here."""
        raise TypeError(f"{type(self).__name__} does not define what it reads")

    def digests(self, folder: Path) -> dict[str, str]:
        """Return the SHA-256 of the files that are read, by name."""
        sums = {}
        for name in (self.configuration, self.tensors):
            with files.explained("read", folder / name):
                sums[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        return sums

    def check_readable(self, folder: Path) -> None:
        """Refuse a folder whose tensors lie in a pickle, with the lines that write them otherwise, or are not there."""
        if (folder / self.tensors).is_file():
            return
        if not (folder / self.pickled).is_file():
            raise PeftkitError(f"{folder}: there is no {self.tensors} in it, which holds the adapter's tensors.")
        raise PeftkitError(
            f"{folder / self.pickled} is a pickle, which runs code when it is opened, and is not read. Where you trust "
            f"it, write its tensors as {self.tensors} with torch and safetensors, and name the folder again:\n"
            "  import torch; from safetensors.torch import save_file\n"
            f"  t = torch.load({str(folder / self.pickled)!r}, map_location='cpu', weights_only=True)\n"
            f"  save_file({{k: v.clone().contiguous() for k, v in t.items()}}, {str(folder / self.tensors)!r})"
        )

    def values(self, folder: Path) -> dict[str, Tensor]:
        """Read all tensors, floating-point ones as fp32."""
        file = TensorFile(folder / self.tensors)
        read = {name: file.read(name) for name in file.names}
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in read.items()}


READERS: Registry[FolderReader] = Registry("library", "peftkit.interchange.readers")


def reader_of(folder: Path) -> FolderReader | None:
    """Return the reader of a folder; None where no library is known by its files."""
    return next((reader for _, reader in READERS.items() if reader.claims(folder)), None)


def is_foreign(folder: Path) -> bool:
    """Say whether a folder holds an adapter of another library, and is no run."""
    # A name that no system takes is no folder: what reads it next tells that.
    return os.path.isdir(folder) and not (folder / "recipe.yaml").is_file() and reader_of(folder) is not None


def function(name: str, place: str) -> Activation:
    """Return our name of the function between the matrices of a bottleneck."""
    ours = FUNCTIONS.get(name.lower(), name.lower())
    if ours not in ACTIVATIONS:
        known = ", ".join(sorted({*ACTIVATIONS, *FUNCTIONS}))
        raise PeftkitError(f"{place}: non_linearity is {name!r}, and only these functions are read: {known}.")
    return cast(Activation, ours)


def check_fixed(config: Mapping[str, Any], fixed: Mapping[str, tuple[Any, str]], place: str) -> None:
    """Refuse options whose values are not those that are read: by key the value, and what another one computes."""
    for key, (value, otherwise) in fixed.items():
        found = config.get(key, value)
        if found != value:
            raise PeftkitError(f"{place}: {key} is {found!r}, which {otherwise}, and only {value!r} is read.")


def check_known(config: Mapping[str, Any], known: set[str], place: str) -> None:
    """Refuse options of which nothing is known, where they are set."""
    unread = sorted(key for key, value in config.items() if key not in known and value not in (None, False, [], {}))
    if unread:
        raise PeftkitError(f"{place}: {', '.join(unread)} is set, and nothing is known of what that computes here.")


def check_there(config: Mapping[str, Any], keys: Sequence[str], place: str) -> None:
    """Refuse a configuration that lacks one of these keys."""
    lacking = next((key for key in keys if config.get(key) is None), None)
    if lacking is not None:
        raise PeftkitError(f"{place}: {lacking} is missing, which an adapter of this kind has.")


def shaped(tensor: Tensor, key: str, place: str, *sizes: int | None) -> Tensor:
    """Return a tensor of these sizes, None for any but zero; PeftkitError where it has others."""
    fits = tensor.ndim == len(sizes) and all(
        n == size if size is not None else n > 0 for n, size in zip(tensor.shape, sizes, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise PeftkitError(f"{place}: the tensor {key} has the shape {list(tensor.shape)}, and [{wanted}] is wanted.")
    return tensor


def common(values: Sequence[int], what: str, place: str) -> int:
    """Return the one value that all modules have."""
    if len(set(values)) > 1:
        raise PeftkitError(f"{place}: {what} differ between modules ({sorted(set(values))}), and one is read.")
    return values[0]


def collapsed(
    embedding: Tensor, layers: Sequence[tuple[Tensor, Tensor]], place: str, activation: str = "tanh"
) -> Tensor:
    """Return what the two layers [out, in] and [out] of a prefix's MLP make of its embedding [length, width]."""
    width = shaped(embedding, "wte.weight", place, None, None).shape[1]
    for at, (weight, bias) in zip((0, 2), layers, strict=True):
        outputs = len(shaped(weight, f"control_trans.{at}.weight", place, None, width))
        shaped(bias, f"control_trans.{at}.bias", place, outputs)
        width = outputs
    (first, first_bias), (last, last_bias) = layers
    inner = ACTIVATIONS[activation](torch.nn.functional.linear(embedding, first, first_bias))
    return torch.nn.functional.linear(inner, last, last_bias)
