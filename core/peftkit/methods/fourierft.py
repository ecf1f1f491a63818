"""FourierFT trains a few frequencies of the change of a weight (Gao et al. 2024, arXiv:2405.03003)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from peftkit.layers.places import generator, places
from peftkit.layout import Site
from peftkit.method import Targeted
from peftkit.ports.adapter import Adapter
from peftkit.ports.linear import Delta


@dataclass(frozen=True, kw_only=True)
class FourierFT(Targeted, name="fourierft"):
    """W + s Re(F), F the inverse two-dimensional Fourier transform of c [count] at random places of [out, in].

    The places follow from the seed and the shape, the same for all weights of a shape, and are not saved. c is zero at
    the start, which is thus the base; the official code draws it from a normal distribution, Hugging Face peft has
    both.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Gao et al. 2024, arXiv:2405.03003"
    summary: ClassVar[str] = (
        "Trains a few coefficients of the change's Fourier transform at random places. The number is free of the "
        "layer's size."
    )
    default_learning_rate: ClassVar[float] = 0.13
    rate_falls_with_width: ClassVar[bool] = False
    by_weight: ClassVar[bool] = True
    size: ClassVar[str | None] = "count"

    count: Annotated[int, Ge(1)] = 1000
    """Trained coefficients of each weight; all where it has fewer entries."""
    scale: Annotated[float, Gt(0)] = 150.0
    """The factor s of the transform."""
    seed: Annotated[int, Ge(0)] = 777
    """Seed of the places."""

    def build(self, site: Site) -> Adapter:
        return Spectrum(site, self)


class Spectrum(Delta):
    """Coefficients c [count] at `indices` [count], row-major places of [out, in]."""

    indices: Tensor

    def __init__(self, site: Site, method: FourierFT):
        super().__init__(site)
        self.scale = method.scale
        size = site.outputs * site.inputs
        self.c = nn.Parameter(torch.zeros(min(method.count, size)))
        drawn = places(len(self.c), size, generator(method.seed), self.c.device)
        self.register_buffer("indices", drawn, persistent=False)

    def spread(self) -> Tensor:
        """Return the matrix [out, in] with the coefficients at their places and zero elsewhere."""
        flat = self.c.new_zeros(self.site.outputs * self.site.inputs).index_put((self.indices,), self.c)
        return flat.view(self.site.outputs, self.site.inputs)

    def delta(self, weight: Tensor) -> Tensor:
        return torch.fft.ifft2(self.spread()).real * self.scale
