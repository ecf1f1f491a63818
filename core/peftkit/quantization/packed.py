"""A linear layer whose weight is packed: it runs, is read and is written like any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.quantization.inputs import Inputs
from peftkit.quantization.quantizer import Quantizer
from peftkit.quantization.weight import (
    ZERO_POINTS,
    Steps,
    dense,
    has_original,
    hold,
    original,
    rounded,
    shape,
    shift,
    steps,
    store,
    traits,
)


class StoredLinear(nn.Module):
    """y = x W^T + b with W [out, in] kept in a form of its own: a subclass says how it is read, by `stored`.

    The weight is read for the forward and once more for the backward pass, and never kept between them.
    """

    held: Tensor | None
    """What is computed with in place of the stored weight."""
    bias: nn.Parameter | None

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = shape
        self.dtype = dtype
        """What the weight is read in: the dtype that it had."""
        self.register_buffer("held", None, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weight [out, in], read anew each time."""
        return self.unpacked(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self) if self.bias is None else _Product.apply(x, self) + self.bias.to(x.dtype)

    def unpacked(self, dtype: torch.dtype, fleeting: bool = False) -> Tensor:
        """Return the weight [out, in] in `dtype`; a `fleeting` one is gone when the next one is unpacked."""
        return self.stored(dtype, fleeting) if self.held is None else self.held.to(dtype)

    def stored(self, dtype: torch.dtype, fleeting: bool = False) -> Tensor:
        """Return the weight [out, in] that is stored, in `dtype`; a `fleeting` one may lie in shared memory."""
        raise TypeError(f"{type(self).__name__} does not say how its weight is read")


class PackedLinear(StoredLinear):
    """A linear layer whose weight is in a format of `Quantizer`; its tensors are buffers, as the format names them."""

    def __init__(self, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype, quantizer: Quantizer):
        super().__init__(shape, dtype)
        self.quantizer = quantizer
        self.parts: tuple[str, ...] = ()
        self.fill(parts)
        self.source: Callable[[], Tensor] | None = None
        """Reads the weight as it was before, for starts that are found from it."""

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        quantizer: Quantizer,
        where: str = "the weight",
        inputs: Inputs | None = None,
    ) -> PackedLinear:
        """Pack `weight` [out, in], for `inputs` where given; PeftkitError names `where` for one that cannot be."""
        shape = (weight.shape[0], weight.shape[1])
        layer = cls(quantizer.quantize(weight, where, inputs), shape, weight.dtype, quantizer)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return layer

    def stored(self, dtype: torch.dtype, fleeting: bool = False) -> Tensor:
        return self.quantizer.unpack(self.packed(), (self.out_features, self.in_features), dtype, fleeting)

    def packed(self) -> dict[str, Tensor]:
        """Return the packed tensors by the names of the format."""
        return {key: cast(Tensor, getattr(self, key)) for key in self.parts}

    def fill(self, parts: Mapping[str, Tensor]) -> None:
        """Take packed tensors in the place of the old ones, of which there may be others."""
        for key in self.parts:
            delattr(self, key)
        self.parts = tuple(parts)
        for key, part in parts.items():
            self.register_buffer(key, part)

    def pack(self, weight: Tensor) -> None:
        """Store `weight` [out, in] in the format in the place of the old one."""
        before, after = self.packed(), self.quantizer.quantize(weight)
        if {key: part.dtype for key, part in before.items()} != {key: part.dtype for key, part in after.items()}:
            # A shift left other tensors than the format packs.
            self.fill(after)
            return
        for key, part in after.items():
            before[key].copy_(part)

    def extra_repr(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.quantizer.options().items())
        return f"{self.in_features} -> {self.out_features}, {self.quantizer.name}, {options}"


class _Product(torch.autograd.Function):
    """x W^T whose graph keeps neither x nor W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: StoredLinear) -> Tensor:  # type: ignore[override]
        ctx.layer, ctx.dtype = layer, x.dtype
        kind = x.device.type
        compute = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return F.linear(x.to(compute), layer.unpacked(compute, fleeting=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return (gradient @ ctx.layer.unpacked(gradient.dtype, fleeting=True)).to(ctx.dtype), None


@dense.register
def _(module: StoredLinear) -> Tensor:
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
def _(module: StoredLinear, weight: Tensor, keep: bool = True) -> Callable[[], None]:
    _check(module, weight)
    before, module.held = module.held, weight.detach().to(module.dtype, copy=True)
    return lambda: setattr(module, "held", before)


@traits.register
def _(module: PackedLinear) -> frozenset[str]:
    return module.quantizer.traits


@steps.register
def _(module: PackedLinear) -> Steps:
    _needs(module, module.quantizer.traits)
    sizes = (module.out_features, module.in_features)
    scale = module.quantizer.scale(module.packed(), sizes)
    return Steps(scale, lambda: module.quantizer.basis(module.packed(), sizes))


@shift.register
def _(module: PackedLinear, scale: Tensor | None, offset: Tensor | None) -> Callable[[], None]:
    _needs(module, module.quantizer.traits if offset is None else module.quantizer.traits & {ZERO_POINTS})
    if module.held is not None:
        raise PeftkitError("a weight that is merged densely has no codes to keep: undo that first.")
    before = module.packed()
    module.fill(module.quantizer.shift(before, (module.out_features, module.in_features), scale, offset))
    return lambda: module.fill(before)


def _needs(module: PackedLinear, traits: frozenset[str]) -> None:
    if not traits:
        raise PeftkitError(f"the format {module.quantizer.name} has no scales or zero points that take this change.")


def _check(module: StoredLinear, weight: Tensor) -> None:
    if tuple(weight.shape) != shape(module):
        raise PeftkitError(f"a weight of shape {list(weight.shape)} does not fit {module}.")
