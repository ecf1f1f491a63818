"""Binary codes: a weight is a sum of few scales, each with a sign of its own for every weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from peftkit.kernels.wide import wide
from peftkit.quantization.bits import pack, pieces, unpack
from peftkit.quantization.groups import Grouped
from peftkit.quantization.weight import BINARY

ROUNDS = 15
"""Times that scales and signs are found by turns; the error moves little after these."""


@dataclass(frozen=True, kw_only=True)
class Binary(Grouped):
    """w ~ sum_k a_k b_k with b_k = +-1 for each weight and `bits` scales a_1 >= a_2 >= ... >= 0 for each group.

    Greedy first (b_k the sign of what is left, a_k its mean size), then by turns the scales by least squares and for
    each weight the nearest of the 2^bits sums (Xu et al. 2018, arXiv:1802.00150; the start is that of Guo et al. 2017).
    """

    paper: ClassVar[str] = "Kwon et al. 2022, arXiv:2210.03858"

    group_size: int = 0
    """Inputs of one output that share their scales; it divides the number of inputs. 0 takes all of them."""

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        groups = weight.reshape(-1, self.group_size or weight.shape[1])
        packed, scales = [], []
        for piece in pieces(groups):
            codes, scale = _find(groups[piece], self.bits)
            packed.append(pack(codes.flatten(), self.bits))
            scales.append(scale)
        return {"codes": torch.cat(packed), "scale": torch.cat(scales)}

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        codes = self._codes(parts, shape)
        return _sums(parts["scale"]).gather(1, codes.long()).view(shape)

    @property
    def traits(self) -> frozenset[str]:
        return frozenset({BINARY})

    def scale(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return parts["scale"][:, 0].view(shape[0], -1)

    def basis(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        # The first scale's sign is the highest bit.
        return ((self._codes(parts, shape) >> (self.bits - 1)).float() * 2 - 1).view(shape)

    def shift(
        self, parts: Mapping[str, Tensor], shape: tuple[int, int], scale: Tensor | None, offset: Tensor | None
    ) -> dict[str, Tensor]:
        if scale is None:
            return dict(parts)
        first, others = parts["scale"].split([1, self.bits - 1], 1)
        return {**parts, "scale": torch.cat([first + scale.flatten()[:, None].float(), others], 1)}

    def error_bound(self, weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        groups = weight.float().reshape(-1, self.group_size or weight.shape[1])
        rising = _sums(parts["scale"]).sort(1).values
        # Half the widest gap between two sums, or the distance to the last one.
        gap = (rising[:, 1:] - rising[:, :-1]).amax(1, keepdim=True) / 2
        beyond = groups.abs() - rising[:, -1:]
        return (torch.maximum(gap, beyond) + 1e-6 * groups.abs()).view(weight.shape)

    def _codes(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return unpack(parts["codes"], self.bits, shape[0] * shape[1]).view(-1, self.group_size or shape[1])


def _find(groups: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return codes [groups, size] in uint8 and scales [groups, bits] of weights [groups, size]."""
    left, signs = groups, []
    for _ in range(bits):
        signs.append(torch.where(left < 0, -1.0, 1.0))
        left = left - left.abs().mean(1, keepdim=True) * signs[-1]
    basis = torch.stack(signs, 2)
    for _ in range(ROUNDS):
        scale = _least_squares(groups, basis)
        codes = _nearest(groups, scale)
        basis = _signs(bits, groups.device)[codes.long()]
    return codes, scale


def _least_squares(groups: Tensor, basis: Tensor) -> Tensor:
    """Return the scales [groups, bits], falling and not negative, that bring the sum nearest to the weights."""
    gram = wide(basis.mT @ basis)
    # Signs that are equal throughout a group leave a choice: the one with the smallest scales is taken.
    solution = torch.linalg.pinv(gram, hermitian=True) @ wide(basis.mT @ groups[:, :, None])
    return solution.squeeze(2).abs().float().to(groups.device).sort(1, descending=True).values


def _nearest(groups: Tensor, scale: Tensor) -> Tensor:
    """Return the code of the sum nearest to each weight."""
    rising, order = _sums(scale).sort(1)
    middles = (rising[:, 1:] + rising[:, :-1]) / 2
    return order.to(torch.uint8).gather(1, torch.searchsorted(middles.contiguous(), groups.contiguous()))


def _sums(scale: Tensor) -> Tensor:
    """Return the 2^bits sums [groups, 2^bits] of scales [groups, bits] by their codes."""
    # No product of matrices, which autocast would round.
    return (scale.float()[:, None] * _signs(scale.shape[1], scale.device)).sum(2)


def _signs(bits: int, device: torch.device) -> Tensor:
    """Return the signs [2^bits, bits] of each code, the highest bit first."""
    codes = torch.arange(2**bits, device=device)[:, None]
    return ((codes >> torch.arange(bits - 1, -1, -1, device=device)) & 1).float() * 2 - 1
