"""WaveFT trains a few wavelet coefficients of the change of a weight (Bilican et al. 2025, arXiv:2505.12532)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from peftkit.layout import Site
from peftkit.methods.fourierft import FourierFT, Spectrum
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class WaveFT(FourierFT, name="waveft"):
    """W + s F, F the inverse wavelet transform of c [count] at random places of [out, in]; one level of Haar.

    The places follow from the seed and the shape and are not saved. c is zero at the start, which is thus the base.
    With `wavelet: none` the coefficients are entries of the change itself, a random sparse one.
    """

    paper: ClassVar[str] = "Bilican et al. 2025, arXiv:2505.12532"
    summary: ClassVar[str] = (
        "Trains a few wavelet coefficients of the change, each of which touches a small block of the weight. The "
        "number is free of the layer's size."
    )
    default_learning_rate: ClassVar[float] = 0.01

    scale: Annotated[float, Gt(0)] = 10.0
    """The factor s of the transform, in effect one of the learning rate; 25 in the paper."""
    wavelet: Literal["haar", "none"] = "haar"
    """The wavelet of the transform."""

    def build(self, site: Site) -> Adapter:
        return Wavelets(site, self)


class Wavelets(Spectrum):
    """Coefficients of the four bands, which fill the quarters of [out, in]: means, then three kinds of details."""

    def __init__(self, site: Site, method: WaveFT):
        super().__init__(site, method)
        self.wavelet = method.wavelet

    def delta(self, weight: Tensor) -> Tensor:
        spread = self.spread()
        return (spread if self.wavelet == "none" else haar(spread)) * self.scale


def haar(bands: Tensor) -> Tensor:
    """Return the matrix [out, in] whose Haar transform of one level is `bands`; an odd side is padded with zeros."""
    rows, columns = bands.shape
    even = F.pad(bands, (0, columns % 2, 0, rows % 2))
    (means, across), (along, crossed) = (half.chunk(2, 1) for half in even.chunk(2, 0))
    blocks = [
        means + across + along + crossed,
        means + across - along - crossed,
        means - across + along - crossed,
        means - across - along + crossed,
    ]
    return torch.stack(blocks, -1).unflatten(-1, (2, 2)).transpose(1, 2).flatten(2).flatten(0, 1)[:rows, :columns] / 2
