"""Child-Tuning-F trains another random part of all weights at each step (Xu et al. 2021, arXiv:2109.05687)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
from annotated_types import Gt, Le

from peftkit.layers.places import generator
from peftkit.layers.sparse import DenseDelta
from peftkit.layout import Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class ChildTuningF(Targeted, name="child-tuning-f"):
    """W + w with w [out, in], zero at the start, whose gradient is kept at random places and divided by their share.

    At each step every entry is kept with the probability `keep`, so that the gradient is right on average; the mask
    stands before the optimizer's moments, as in the official code, and follows from the step and the site. With
    `keep: 1` it is full fine-tuning of the targets. Weight decay draws towards W, in the official code towards zero.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "selection"
    paper: ClassVar[str] = "Xu et al. 2021, arXiv:2109.05687"
    summary: ClassVar[str] = (
        "Trains all weights of the targets with a random part of the gradient at each step. The noise helps against "
        "overfitting; the memory is that of full fine-tuning."
    )
    default_learning_rate: ClassVar[float] = 0.0056

    keep: Annotated[float, Gt(0), Le(1)] = 0.3
    """Probability that an entry of the gradient is kept."""
    targets: Targets = "linear"

    def build(self, site: Site) -> Adapter:
        return DenseDelta(site)

    def after_backward(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        for key, adapter in cast(Mapping[str, DenseDelta], adapters).items():
            if adapter.w.grad is not None and self.keep < 1:
                drawn = generator(step, key)
                kept = torch.rand(adapter.w.shape, generator=drawn, device="cpu") < self.keep
                adapter.w.grad.mul_(kept.to(adapter.w.device)).div_(self.keep)
