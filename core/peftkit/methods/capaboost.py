"""CapaBoost adds up several masked copies of one low-rank pair (Song et al. 2024, ICLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from peftkit.layers.low_rank import LowRank
from peftkit.layers.places import generator
from peftkit.layout import Site
from peftkit.methods.lora import LoRA
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class CapaBoost(LoRA, name="capaboost"):
    """W + s sum_i (M_i * B)(N_i * A) over `copies` fixed random masks M_i [out, rank], N_i [rank, in] of one pair.

    The change has a rank of up to copies times rank for the numbers of LoRA. Masks keep the share `density`; they
    follow from `mask_seed` and the site's name and are not saved. B is zero at the start, which is thus the base.
    """

    paper: ClassVar[str] = "Song et al. 2024, ICLR 2024"
    summary: ClassVar[str] = (
        "LoRA whose pair is used several times, each time under another fixed random mask. A higher rank for the same "
        "numbers; it merges as LoRA does."
    )
    default_learning_rate: ClassVar[float] = 0.032
    by_weight: ClassVar[bool] = False
    plain_pair: ClassVar[bool] = False

    copies: Annotated[int, Ge(1)] = 2
    """Number of masked copies."""
    density: Annotated[float, Gt(0), Le(1)] = 0.5
    """Share of the entries that each mask keeps."""
    mask_seed: Annotated[int, Ge(0)] = 0
    """Seed of the masks."""

    def build(self, site: Site) -> Adapter:
        return MaskedPairs(site, self)


class MaskedPairs(LowRank):
    """A pair with its masks of A [copies, rank, in] and of B [copies, out, rank]."""

    down_masks: Tensor
    up_masks: Tensor
    factors: tuple[str, str] | None = None

    def __init__(self, site: Site, method: CapaBoost):
        super().__init__(site, method)
        drawn = generator(method.mask_seed, site.id)
        for key, part in (("down_masks", self.A), ("up_masks", self.B)):
            kept = torch.rand(method.copies, *part.shape, generator=drawn, device="cpu") < method.density
            self.register_buffer(key, kept.to(part.device), persistent=False)

    def matrices(self) -> tuple[Tensor, Tensor, float]:
        down, up = self.A * self.down_masks, self.B * self.up_masks
        return down.flatten(0, 1), up.transpose(0, 1).flatten(1), self.scale
