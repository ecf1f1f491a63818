"""A linear layer whose weight is packed: it runs, is read and is written like any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.quantization.quantizer import Quantizer
from peftkit.quantization.weight import dense, has_original, hold, original, rounded, shape, store


class PackedLinear(nn.Module):
    """y = x W^T + b with W [out, in] in a storage format; the packed tensors are buffers, as the format names them.

    The weight is unpacked for the forward and once more for the backward pass, and never kept between them.
    """

    held: Tensor | None
    bias: nn.Parameter | None

    def __init__(self, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype, quantizer: Quantizer):
        super().__init__()
        self.out_features, self.in_features = shape
        self.dtype = dtype
        """What the weight is unpacked to: the dtype that it had."""
        self.quantizer = quantizer
        self.parts = tuple(parts)
        for key, part in parts.items():
            self.register_buffer(key, part)
        self.register_buffer("held", None, persistent=False)
        self.bias = None
        self.source: Callable[[], Tensor] | None = None
        """Reads the weight as it was before, for starts that are found from it."""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, quantizer: Quantizer, where: str = "the weight") -> PackedLinear:
        """Pack `weight` [out, in]; PeftkitError names `where` for one that cannot be packed."""
        shape = (weight.shape[0], weight.shape[1])
        layer = cls(quantizer.quantize(weight, where), shape, weight.dtype, quantizer)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return layer

    @property
    def weight(self) -> Tensor:
        """The weight [out, in], unpacked anew each time."""
        return self.unpacked(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self) if self.bias is None else _Product.apply(x, self) + self.bias.to(x.dtype)

    def unpacked(self, dtype: torch.dtype, fleeting: bool = False) -> Tensor:
        """Return the weight [out, in] in `dtype`; a `fleeting` one is gone when the next one is unpacked."""
        if self.held is not None:
            return self.held.to(dtype)
        parts = {key: cast(Tensor, getattr(self, key)) for key in self.parts}
        return self.quantizer.unpack(parts, (self.out_features, self.in_features), dtype, fleeting)

    def pack(self, weight: Tensor) -> None:
        """Store `weight` [out, in] in the format in the place of the old one."""
        for key, part in self.quantizer.quantize(weight).items():
            cast(Tensor, getattr(self, key)).copy_(part)

    def extra_repr(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.quantizer.options().items())
        return f"{self.in_features} -> {self.out_features}, {self.quantizer.name}, {options}"


class _Product(torch.autograd.Function):
    """x W^T whose graph keeps neither x nor W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:  # type: ignore[override]
        ctx.layer, ctx.dtype = layer, x.dtype
        kind = x.device.type
        compute = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return F.linear(x.to(compute), layer.unpacked(compute, fleeting=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return (gradient @ ctx.layer.unpacked(gradient.dtype, fleeting=True)).to(ctx.dtype), None


@dense.register
def _(module: PackedLinear) -> Tensor:
    return module.weight


@store.register
def _(module: PackedLinear, weight: Tensor) -> None:
    _check(module, weight)
    with torch.no_grad():
        module.held = None
        module.pack(weight)


@original.register
def _(module: PackedLinear) -> Tensor:
    return module.weight if module.source is None else module.source()


@has_original.register
def _(module: PackedLinear) -> bool:
    return module.source is not None


@rounded.register
def _(module: PackedLinear, weight: Tensor) -> Tensor:
    _check(module, weight)
    parts = module.quantizer.quantize(weight)
    return module.quantizer.decode(parts, (module.out_features, module.in_features)).to(module.dtype).float()


@hold.register
def _(module: PackedLinear, weight: Tensor, keep: bool = True) -> Callable[[], None]:
    _check(module, weight)
    before, module.held = module.held, weight.detach().to(module.dtype, copy=True)
    return lambda: setattr(module, "held", before)


def _check(module: PackedLinear, weight: Tensor) -> None:
    if tuple(weight.shape) != shape(module):
        raise PeftkitError(f"a weight of shape {list(weight.shape)} does not fit {module}.")
