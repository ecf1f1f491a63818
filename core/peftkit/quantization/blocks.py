"""Formats of a code book: blocks of weights share a scale, and each weight is the nearest of a few values times it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from peftkit.quantization import kernels, scales
from peftkit.quantization.bits import pack, packed_size, pieces, table, unpack
from peftkit.quantization.quantizer import Quantizer

BLOCK_SIZES = tuple({"block_size": size} for size in (16, 32, 64, 128))
"""What a budget of bits chooses from."""


@dataclass(frozen=True, kw_only=True)
class Blockwise(Quantizer):
    """w ~ c code[i], with c the largest absolute value of the block and `i` the nearest value to w / c.

    Blocks run over the flattened weight, row after row; the last may be shorter. A subclass gives `code`.
    """

    block_size: int = 64
    """Weights that share a scale."""
    double_quant: bool = True
    """Store the scales in 8 bits too."""

    code: ClassVar[tuple[float, ...]]
    """The 2^bits values by their index."""
    kernel: ClassVar[str | None] = None
    """What bitsandbytes calls the format, where it has it."""

    def faults(self) -> list[str]:
        fault = f"block_size: found {self.block_size}; allowed: a power of two from 16 to 4096"
        return [] if self.block_size in {2**power for power in range(4, 13)} else [fault]

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        blocks = scales.blocks(weight.flatten(), self.block_size)
        largest = scales.largest(blocks)
        rising, order = _rising(type(self), weight.device)
        # A block of zeros has no scale; any gives zeros.
        divisor = largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        packed = []
        for piece in pieces(blocks):
            codes_of_piece = scales.nearest(blocks[piece] / divisor[piece], rising).flatten()
            packed.append(
                pack(codes_of_piece if order is None else order.index_select(0, codes_of_piece.int()), self.bits)
            )
        codes = torch.cat(packed)[: packed_size(weight.numel(), self.bits)]
        return {"codes": codes, **scales.encode(largest, self.double_quant)}

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        count = shape[0] * shape[1]
        packed, size = parts["codes"], scales.decode(parts)
        code = torch.tensor(self.code, dtype=torch.float32, device=packed.device)
        if 8 % self.bits:
            values = code[unpack(packed, self.bits, count).long()]
        else:
            values = torch.nn.functional.embedding(packed.int(), table(code, self.bits)).flatten()[:count]
        if count % self.block_size == 0:
            return (values.view(-1, self.block_size) * size[:, None]).view(shape)
        return (scales.blocks(values, self.block_size) * size[:, None]).flatten()[:count].view(shape)

    def unpack(
        self, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype, fleeting: bool = False
    ) -> Tensor:
        packed = parts["codes"]
        plain = self.kernel is None or packed.is_meta or shape[1] % self.block_size
        if plain or dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return super().unpack(parts, shape, dtype)
        room = kernels.scratch(shape, dtype, packed) if fleeting else None
        return _quickest(self, packed.device, dtype)(parts, shape, dtype, room)

    def error_bound(self, weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        rising, _ = _rising(type(self), weight.device)
        largest = scales.largest(scales.blocks(weight.float().flatten(), self.block_size))
        # Half the widest gap, and what the scale itself lost.
        gap = (rising[1:] - rising[:-1]).max() / 2
        bound = largest * (gap + 1e-6) + (scales.decode(parts) - largest).abs()
        return bound.repeat_interleave(self.block_size)[: weight.numel()].view(weight.shape)


@cache
def _quickest(quantizer: Blockwise, device: torch.device, dtype: torch.dtype) -> kernels.Unpack:
    """Return the quickest way to unpack a weight of whole blocks on this device."""
    size, kind = quantizer.block_size, quantizer.kernel or ""

    def ours(parts: Mapping[str, Tensor], shape: tuple[int, int], wanted: torch.dtype, room: Tensor | None) -> Tensor:
        return quantizer.decode(parts, shape).to(wanted)

    def theirs(parts: Mapping[str, Tensor], shape: tuple[int, int], wanted: torch.dtype, room: Tensor | None) -> Tensor:
        largest = scales.decode(parts, operators)
        if room is None or into is None:
            return operators.dequantize_4bit(parts["codes"], largest, size, kind, shape, wanted)
        return into(parts["codes"], largest, size, room) if type(room) is Tensor else room

    # Measured on real tensors, also where a model without storage is built or an estimate of memory runs on one.
    with _disable_current_modes(), torch.device(device):
        operators = kernels.bitsandbytes()
        into = kernels.into(kind, dtype) if device.type == "cpu" else None
        ways = {"torch": ours} if operators is None else {"torch": ours, "bitsandbytes": theirs}
        sample = quantizer.encode(
            torch.randn(kernels.SAMPLE, generator=torch.Generator().manual_seed(0), device="cpu").to(device)
        )
        return kernels.choose(f"unpacking {quantizer.name}", sample, dtype, ways)


def _rising(cls: type[Blockwise], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the different values in rising order, and the index of each in the code unless that is in order too."""
    index = {value: position for position, value in reversed(list(enumerate(cls.code)))}
    rising = sorted(index)
    places = [index[value] for value in rising]
    order = None if places == list(range(len(places))) else torch.tensor(places, dtype=torch.uint8)
    values = torch.tensor(rising, dtype=torch.float32, device=device)
    return values, None if order is None else order.to(device)


def normal_float(bits: int) -> tuple[float, ...]:
    """Return the NormalFloat values of `bits` bits in rising order: quantiles of the normal one, 0 and 1 exact.

    2^(bits-1) steps above zero and one less below it, evenly spaced in probability up to 0.9677083, over the largest
    (Dettmers et al. 2023, arXiv:2305.14314, section 3; the offset is the official code's).
    """
    offset, half = 0.9677083, 2 ** (bits - 1)
    above = torch.special.ndtri(torch.linspace(offset, 0.5, half + 1, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, half, dtype=torch.float64)[:-1])
    values = torch.cat([above, below, torch.zeros(1, dtype=torch.float64)]).sort().values
    return tuple((values / values.max()).tolist())
