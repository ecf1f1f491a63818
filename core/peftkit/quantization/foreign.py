"""Linear layers that another library has packed: they run, are read and are merged into like any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.quantization.packed import StoredLinear
from peftkit.quantization.weight import has_original, rounded, shape, store
from peftkit.registry import Registry

READERS: Registry[Reader] = Registry("packed layer", "peftkit.quantization.readers")


@dataclass(frozen=True)
class Reader:
    """What one library's packed layer is asked; nothing here imports that library."""

    method: str
    """The `quant_method` of the checkpoints that hold such layers."""
    packages: tuple[str, ...]
    """What transformers needs beside itself to load them."""
    knows: Callable[[Any], bool]
    """Says whether a module is such a layer."""
    weight: Callable[[Any], Tensor]
    """Returns the weight [out, in] that the layer stands for, in any floating dtype."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the checkpoint's `quantization_config` that have the library choose layers which can be read."""
    kernel: bool = False
    """Whether the layer's own forward is the product with that weight, which a GPU decodes quicker with."""


class ForeignLinear(StoredLinear):
    """y = x W^T + b around a `layer` of another library, which `reader` asks for W [out, in].

    The layer is no submodule, so that neither targets nor counts of parameters find it; its bias is taken over. Without
    a layer (an outline on the meta device) `size` is the bytes of its packed weight.
    """

    packed: Tensor | None

    def __init__(
        self,
        layer: nn.Module | None,
        reader: Reader,
        shape: tuple[int, int],
        dtype: torch.dtype,
        bias: Tensor | None = None,
        size: int = 0,
    ):
        super().__init__(shape, dtype, bias)
        self.__dict__["layer"] = layer
        self.reader = reader
        self.register_buffer("packed", None, persistent=False)
        if layer is None:
            self.packed = torch.empty(size, dtype=torch.uint8, device="meta")

    @classmethod
    def of(cls, layer: Any, reader: Reader, dtype: torch.dtype) -> ForeignLinear:
        """Take over a layer and its bias; weights are read in `dtype`."""
        sizes, bias = shape(layer), layer.bias
        assert sizes is not None
        layer.bias = None
        return cls(layer, reader, sizes, dtype, None if bias is None else bias.detach().to(dtype))

    def stored(self, dtype: torch.dtype, fleeting: bool = False) -> Tensor:
        if self.packed is not None:
            return torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.packed.device)
        with torch.no_grad():
            return self.reader.weight(self.__dict__["layer"]).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        # The libraries' kernels for the CPU repack the weight in place, or need sizes that divide.
        if self.reader.kernel and self.held is None and _decodes_on_gpu(x):
            y = self.__dict__["layer"](x)
            return y if self.bias is None else y + self.bias.to(y.dtype)
        return super().forward(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ForeignLinear:
        super()._apply(fn, recurse)
        if self.__dict__["layer"] is not None:
            self.__dict__["layer"]._apply(fn)
        return self

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.reader.method}"


def _decodes_on_gpu(x: Tensor) -> bool:
    return x.is_cuda and torch.is_inference_mode_enabled()


def reader_of(module: nn.Module) -> Reader | None:
    """Return what reads `module`, or None where it is no packed layer of a library that is known here."""
    return next((reader for _, reader in READERS.items() if reader.knows(module)), None)


def named(module: nn.Module, name: str, package: str) -> bool:
    """Say whether the module's class, or one that it inherits from, is `name` of `package`."""
    return any(cls.__name__ == name and cls.__module__.split(".")[0] == package for cls in type(module).__mro__)


@store.register
def _(module: ForeignLinear, weight: Tensor) -> None:
    raise PeftkitError(_read_only(module, "be changed"))


@has_original.register
def _(module: ForeignLinear) -> bool:
    return False


@rounded.register
def _(module: ForeignLinear, weight: Tensor) -> Tensor:
    raise PeftkitError(_read_only(module, "take in another weight"))


def _read_only(module: ForeignLinear, what: str) -> str:
    return (
        f"the weight of a checkpoint that {module.reader.method} has quantized can be read, and cannot {what}: choose "
        "another init, or load the original checkpoint with `quantization`."
    )
