"""SURM adds structured matrices of unrestricted rank (Sehanobish et al. 2024, arXiv:2406.17740)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.layers.circulant import circulant, embedded, product
from peftkit.layout import Site
from peftkit.method import Targeted
from peftkit.methods.krona import KronA, Kronecker
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta


@dataclass(frozen=True, kw_only=True)
class SURM(Targeted, name="surm"):
    """W + S with S of square blocks as large as the smaller side n, side by side along the larger one.

    A circulant block is its first row [n], a Toeplitz one its diagonals [2 n - 1], a symmetric Toeplitz one half of
    them [n]; the last block is cut where n does not divide the larger side. `structure: kronecker` is KronA with
    factors next to the square root. All are zero at the start, which is thus the base, and their products are taken
    by FFT.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Sehanobish et al. 2024, arXiv:2406.17740"
    summary: ClassVar[str] = (
        "Adds a circulant, Toeplitz or Kronecker matrix to frozen weights. Full rank for as many numbers as LoRA of "
        "rank one or less."
    )
    default_learning_rate: ClassVar[float] = 0.032
    by_weight: ClassVar[bool] = True

    structure: Literal["circulant", "toeplitz", "symmetric-toeplitz", "kronecker"] = "circulant"
    """What the change is made of."""

    def build(self, site: Site) -> Adapter:
        return Kronecker(site, KronA()) if self.structure == "kronecker" else Structured(site, self.structure)


class Structured(Delta):
    """Numbers on the diagonals [blocks, n or 2 n - 1] of square blocks along the larger side."""

    def __init__(self, site: Site, structure: str):
        super().__init__(site)
        self.structure, self.n = structure, min(site.inputs, site.outputs)
        blocks = -(-max(site.inputs, site.outputs) // self.n)
        self.d = nn.Parameter(torch.zeros(blocks, 2 * self.n - 1 if structure == "toeplitz" else self.n))

    def rows(self) -> Tensor:
        """Return first rows [blocks, n or 2 n] of circulants that hold the blocks in their upper left."""
        if self.structure == "circulant":
            return self.d
        return embedded(self.d if self.structure == "toeplitz" else torch.cat([self.d.flip(1)[:, :-1], self.d], 1))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        rows, inputs = self.rows(), self.site.inputs
        # Blocks lie below each other where there are more outputs, and side by side where there are more inputs.
        grid = rows[:, None] if inputs == self.n else rows[None]
        blocks = F.pad(x, (0, -inputs % self.n)).unflatten(-1, (-1, self.n))
        y = product(F.pad(blocks, (0, rows.shape[-1] - self.n)), grid)[..., : self.n].flatten(-2)
        return call(x) + y[..., : self.site.outputs]

    def delta(self, weight: Tensor) -> Tensor:
        blocks = circulant(self.rows())[:, : self.n, : self.n]
        joined = blocks.flatten(0, 1) if self.site.inputs == self.n else blocks.transpose(0, 1).flatten(1)
        return joined[: self.site.outputs, : self.site.inputs]
