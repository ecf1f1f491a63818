"""Integer formats: groups of inputs share a scale and, where the format is asymmetric, a zero point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.quantization import scales
from peftkit.quantization.bits import pack, pieces, unpack
from peftkit.quantization.quantizer import Quantizer
from peftkit.quantization.weight import INTEGERS, ZERO_POINTS

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class Grouped(Quantizer):
    """A format whose groups of `group_size` inputs of each output have scales of their own."""

    group_size: int = 64
    """Inputs of one output that share a scale; it divides the number of inputs. 0 takes all of them."""

    def faults(self) -> list[str]:
        allowed = self.group_size == 0 or 8 <= self.group_size <= 4096
        return [] if allowed else [f"group_size: found {self.group_size}; allowed: 0, or from 8 to 4096"]

    def check(self, shape: tuple[int, int]) -> None:
        size = self.group_size
        if size and shape[1] % size:
            fitting = [other for other in (16, 32, 64, 128, 256) if shape[1] % other == 0]
            choices = f"one of {', '.join(map(str, fitting))}, or 0" if fitting else "0"
            raise PeftkitError(f"its {shape[1]} inputs are no multiple of group_size {size}: choose {choices}.")


@dataclass(frozen=True, kw_only=True)
class Groupwise(Grouped):
    """w ~ c (i - z) with i and z whole numbers below 2^bits, for groups of `group_size` inputs of each output.

    Asymmetric, c is (max - min) / (2^bits - 1), with 0 between them, and z what 0 becomes; symmetric, c is
    max |w| / (2^(bits-1) - 1) and z is 2^(bits-1). The scale is rounded to what is stored before weights are. Scales
    and zero points that a `shift` has changed are kept in fp32, the zero points as any number.
    """

    paper: ClassVar[str] = "Jacob et al. 2017, arXiv:1712.05877"

    symmetric: bool = False
    """Without zero points."""
    double_quant: bool = True
    """Store the scales in 8 bits too."""

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        groups = weight.reshape(-1, self.group_size or weight.shape[1])
        parts, scale, zero = self.grid(groups)
        packed = []
        for piece in pieces(groups):
            codes = self.nearest(groups[piece], scale[piece, None], zero[piece, None])
            packed.append(pack(codes.to(torch.uint8).flatten(), self.bits))
        return {"codes": torch.cat(packed), **parts}

    def grid(self, groups: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the packed scales and zero points of `groups` [n, size], and both [n] in fp32, as they are read."""
        levels, half = 2**self.bits - 1, 2 ** (self.bits - 1)
        if self.symmetric:
            wanted, low = scales.largest(groups) / (half - 1), None
        else:
            low = groups.amin(1).clamp(max=0)
            wanted = (groups.amax(1).clamp(min=0) - low) / levels
        parts = scales.encode(wanted, self.double_quant)
        scale = _scale(parts).clamp(min=TINY)
        if low is None:
            return parts, scale, torch.full_like(scale, half)
        zero = (-low / scale).round().clamp(0, levels)
        return {**parts, "zeros": pack(zero.to(torch.uint8), self.bits)}, scale, zero

    def nearest(self, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Return the code nearest to each weight, in fp32; scales and zero points are of its shape or spread to it."""
        return (weight / scale).round_().add_(zero).clamp_(0, 2**self.bits - 1)

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        size = self.group_size or shape[1]
        return (self.basis(parts, shape).view(-1, size) * _scale(parts)[:, None]).view(shape)

    @property
    def traits(self) -> frozenset[str]:
        return frozenset({INTEGERS, ZERO_POINTS})

    def scale(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return _scale(parts).view(shape[0], -1)

    def basis(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        size = self.group_size or shape[1]
        codes = unpack(parts["codes"], self.bits, shape[0] * shape[1]).view(-1, size).float()
        return (codes - self._zero(parts, codes.shape[0])).view(shape)

    def shift(
        self, parts: Mapping[str, Tensor], shape: tuple[int, int], scale: Tensor | None, offset: Tensor | None
    ) -> dict[str, Tensor]:
        new = _scale(parts) if scale is None else _scale(parts) + scale.flatten().float()
        kept = {key: part for key, part in parts.items() if not key.startswith("scale")}
        if offset is None:
            return {**kept, "scale": new}
        added = offset.flatten().float()
        # A scale too small to divide by gets one whose steps vanish beside the offset.
        new = torch.where(new.abs() < added.abs() * 1e-30, added.abs() * 1e-30, new)
        moved = torch.where(added == 0, 0.0, added / new)
        return {**kept, "scale": new, "zeros": self._zero(parts, len(new)).flatten().expand(len(new)) - moved}

    def _zero(self, parts: Mapping[str, Tensor], groups: int) -> Tensor:
        """Return the zero points [groups, 1], or [1, 1] where all are the same."""
        zeros = parts.get("zeros")
        if zeros is None:
            return parts["codes"].new_full((1, 1), 2 ** (self.bits - 1)).float()
        return (zeros if zeros.is_floating_point() else unpack(zeros, self.bits, groups).float())[:, None]

    def error_bound(self, weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        groups = weight.float().reshape(-1, self.group_size or weight.shape[1])
        scale = _scale(parts)
        # Half a step for the weight and half for the zero point, and what a scale rounded down cuts off at the ends.
        reach = scale * (2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1)
        spread = groups.abs().amax(1) if self.symmetric else groups.amax(1).clamp(min=0) - groups.amin(1).clamp(max=0)
        bound = scale * 1.001 + (spread - reach).clamp(min=0)
        return bound[:, None].expand_as(groups).reshape(weight.shape)


def _scale(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the scales [groups]; one that its 8 bits round to nothing gives zeros."""
    return scales.decode(parts) if "scale" in parts else scales.decode(parts).clamp(min=TINY)
