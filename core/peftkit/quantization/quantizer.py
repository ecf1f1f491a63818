"""The base of every storage format: a weight to packed tensors and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from peftkit.errors import PeftkitError, unknown
from peftkit.options import Options
from peftkit.quantization.inputs import Inputs
from peftkit.registry import Registry

QUANTIZERS: Registry[type[Quantizer]] = Registry("storage format", "peftkit.quantization.formats")


@dataclass(frozen=True, kw_only=True)
class Quantizer(Options, registry=QUANTIZERS):
    """The options of one format as a recipe writes them; a subclass says how a weight is packed and read.

    Class attributes a subclass sets: `bits` of a code, `paper` and `summary` (one sentence).
    """

    bits: ClassVar[int]
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    budgeted: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """The options of the format from which a budget of bits chooses; none where it never does."""
    calibrated: ClassVar[bool] = False
    """Whether packing looks at what a layer's inputs are on examples (`encode_for`); without them it is `encode`."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Quantizer:
        """Build the format from a recipe's options; a PeftkitError tells every unknown key and wrong value at once."""
        allowed = {field.name: field for field in dataclasses.fields(cls)}
        faults = [f"{cls.name}: {unknown('option', key, allowed)}" for key in options if key not in allowed]
        for key, value in options.items():
            wanted = type(allowed[key].default) if key in allowed else object
            if key in allowed and (type(value) is not wanted):
                faults.append(f"{cls.name}: {key}: found {value!r}; allowed: {_kind(wanted)}")
        if not faults:
            built = cls(**options)
            faults = [f"{cls.name}: {fault}" for fault in built.faults()]
            if not faults:
                return built
        raise PeftkitError(" ".join(faults))

    def faults(self) -> list[str]:
        """Say what is wrong with the options' values."""
        return []

    def check(self, shape: tuple[int, int]) -> None:
        """Raise PeftkitError where a weight [out, in] of this shape cannot be packed."""

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the packed tensors of `weight` [out, in], which is finite and in fp32."""
        raise TypeError(f"the format '{self.name}' does not say how to pack a weight")

    def encode_for(self, weight: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        """Return the packed tensors of `weight` [out, in] that suit these inputs, of the shapes that `encode` gives."""
        return self.encode(weight)

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """Return the weight [out, in] that packed tensors stand for, in fp32."""
        raise TypeError(f"the format '{self.name}' does not say how to read a weight")

    def unpack(
        self, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype, fleeting: bool = False
    ) -> Tensor:
        """Return `decode` in another dtype, by the quickest way there is.

        A `fleeting` weight may lie in memory that the next one takes: the caller keeps no part of it.
        """
        return self.decode(parts, shape).to(dtype)

    def error_bound(self, weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the largest |W - decode(encode(W))| that each weight [out, in] may have."""
        raise TypeError(f"the format '{self.name}' does not state an error bound")

    @property
    def traits(self) -> frozenset[str]:
        """Return the traits of `peftkit.quantization.weight` that packed weights have, which say what can be done."""
        return frozenset()

    def scale(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """Return the scales [out, groups] that a method may train, in fp32."""
        raise TypeError(f"the format '{self.name}' does not give its scales")

    def basis(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """Return the matrix [out, in] in fp32 that these scales multiply."""
        raise TypeError(f"the format '{self.name}' does not give its basis")

    def shift(
        self, parts: Mapping[str, Tensor], shape: tuple[int, int], scale: Tensor | None, offset: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the packed tensors of the weight plus `scale` [out, groups] times the basis and `offset`."""
        raise TypeError(f"the format '{self.name}' does not take other scales")

    def quantize(self, weight: Tensor, where: str = "the weight", inputs: Inputs | None = None) -> dict[str, Tensor]:
        """Check and pack `weight` [out, in] of any dtype, for `inputs` where they are known.

        Raises PeftkitError that names `where` for what cannot be packed, and for inputs that are not finite.
        """
        try:
            self.check((weight.shape[0], weight.shape[1]))
        except PeftkitError as error:
            raise PeftkitError(f"{where} cannot be stored as {self.name}: {error}") from None
        if weight.is_meta:
            outline = _outline(self, (weight.shape[0], weight.shape[1]))
            return {key: torch.empty(size, dtype=dtype, device="meta") for key, (size, dtype) in outline.items()}
        weight = weight.detach().float()
        if not bool(torch.isfinite(torch.stack(torch.aminmax(weight))).all()):
            raise PeftkitError(f"{where} holds NaN or infinity and cannot be stored as {self.name}.")
        if inputs is None or not inputs.count:
            return self.encode(weight)
        if not inputs.finite:
            raise PeftkitError(f"{where} has inputs of NaN or infinity on the examples and cannot be {self.name}.")
        return self.encode_for(weight, inputs)

    def size(self, shape: tuple[int, int]) -> int:
        """Return the bytes of a packed weight [out, in]."""
        parts = self.quantize(torch.empty(shape, device="meta"))
        return sum(part.numel() * part.element_size() for part in parts.values())

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return the stored bits of each weight, scales included."""
        return 8 * self.size(shape) / math.prod(shape)


@cache
def _outline(quantizer: Quantizer, shape: tuple[int, int]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the shapes and dtypes of a packed weight [out, in]: a model without weights has many of one shape."""
    parts = quantizer.encode(torch.empty(shape, dtype=torch.float32, device="meta"))
    return {key: (part.shape, part.dtype) for key, part in parts.items()}


def formats(trait: str) -> list[str]:
    """List the formats that have a trait as they come, the one nearest to 4 bits a code first, calibrated ones last."""
    having = [(cls.calibrated, abs(cls.bits - 4), name) for name, cls in QUANTIZERS.items() if trait in cls().traits]
    return [name for *_, name in sorted(having)]


def _kind(kind: type) -> str:
    return {int: "a whole number", bool: "true or false", float: "a number"}.get(kind, kind.__name__)
