"""LoRA dropout hides whole columns of A and rows of B in training (Lin et al. 2024, arXiv:2404.09610)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from peftkit.kernels.low_rank import Pair
from peftkit.layers.low_rank import LowRank
from peftkit.layout import Site
from peftkit.methods.lora import LoRA
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import linear


@dataclass(frozen=True, kw_only=True)
class LoRADropout(LoRA, name="lora-dropout"):
    """W + s diag(c) B A diag(r) in training, c [out] and r [in] random masks, each kept with 1 - p and scaled by its
    inverse, so that the mean is W + s B A, which is what runs, merges and is saved.

    Hidden are inputs of A and outputs of B, never the inner rank; an element of the product survives with (1 - p)^2.
    The loss is a mean over `samples` mask pairs: the sequences of a batch take them in turn. The paper can also
    average predictions over masks at test time, which a merged weight cannot; it is not done here. B is zero at the
    start, which is thus the base.
    """

    paper: ClassVar[str] = "Lin et al. 2024, arXiv:2404.09610"
    summary: ClassVar[str] = (
        "LoRA that hides random inputs and outputs of its update in training, against overfitting. Afterwards it is "
        "LoRA and merges as such."
    )
    default_learning_rate: ClassVar[float] = 0.013
    by_row: ClassVar[bool] = True

    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Probability p of hiding an input, and of hiding an output, of the adapter in training."""
    samples: Annotated[int, Ge(1)] = 4
    """Number of mask pairs that the sequences of a batch take in turn."""

    def build(self, site: Site) -> Adapter:
        return Hidden(site, self)


class Hidden(LowRank):
    """A low-rank pair whose inputs and outputs are hidden at random in training."""

    def __init__(self, site: Site, method: LoRADropout):
        super().__init__(site, method)
        self.samples = method.samples

    def pair(self, x: Tensor) -> Pair | None:
        return None if self.dropout and self.training else super().pair(x)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        if not (self.training and self.dropout):
            return super().forward(call, x)
        inside = linear(x * self._mask(x, self.site.inputs), self.A)
        return call(x) + linear(inside, self.B) * self._mask(x, self.site.outputs) * self.scale

    def _mask(self, x: Tensor, size: int) -> Tensor:
        """Draw masks [batch, 1, …, size] for x [batch, …, in]; sequences `samples` apart share theirs."""
        drawn = torch.rand(min(self.samples, x.shape[0]), size, device=x.device) >= self.dropout
        turns = torch.arange(x.shape[0], device=x.device) % len(drawn)
        masks = drawn[turns].to(x.dtype) / (1 - self.dropout)
        return masks.reshape(x.shape[0], *[1] * (x.ndim - 2), size)
