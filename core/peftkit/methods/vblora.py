"""VB-LoRA composes all low-rank pairs of a model from one bank of vectors (Li et al. 2024, arXiv:2405.15179)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.low_rank import LowRank
from peftkit.layout import Layout, Site
from peftkit.method import Ranked
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class VBLoRA(Ranked, name="vblora"):
    """W + B A, both cut into sub-vectors [length] that are mixtures of `top` vectors of a bank [vectors, length].

    Each sub-vector has logits over the bank; the `top` largest, by a softmax over them alone, weigh their vectors. The
    bank, uniform within 0.02, and the logits, normal of deviation 0.1, are trained; B A is small and not zero at the
    start. The official code may save the `top` logits alone; here all are saved, so that training can go on.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Li et al. 2024, arXiv:2405.15179"
    summary: ClassVar[str] = (
        "Makes the low-rank pairs of all layers from one trained bank of vectors. What a layer needs of its own are "
        "a few choices from the bank."
    )
    default_learning_rate: ClassVar[float] = 0.056

    rank: Annotated[int, Ge(1)] = 4
    """Inner size of the product B A."""
    vectors: Annotated[int, Ge(1)] = 256
    """Vectors in the bank."""
    length: Annotated[int, Ge(1)] = 256
    """Length of each; the last sub-vector of a side that it does not divide is cut."""
    top: Annotated[int, Ge(1)] = 2
    """How many vectors are mixed."""
    bound: Annotated[float, Gt(0)] = 0.02
    """The bank starts uniform within this bound."""
    deviation: Annotated[float, Gt(0)] = 0.1
    """Standard deviation of the logits at the start."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an input element of the adapter in training."""

    def sites(self, layout: Layout) -> list[Site]:
        if self.top > self.vectors:
            raise PeftkitError(f"{self.name}: top {self.top} is larger than the bank of {self.vectors} vectors.")
        return super().sites(layout)

    def share(self, layout: Layout) -> nn.Module:
        return Bank(self)

    def scale_at(self, site: Site) -> float:
        """Return the factor of the product: one."""
        return 1.0

    def initialise(self, adapter: LowRank) -> None:
        """Leave the pair: the bank and the logits make it."""

    def build(self, site: Site) -> Adapter:
        return Composed(site, self)


class Bank(nn.Module):
    """The vectors [vectors, length] that all pairs are made of."""

    def __init__(self, method: VBLoRA):
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(method.vectors, method.length).uniform_(-method.bound, method.bound))


class Composed(LowRank):
    """The logits a [rank, ceil(in / length), vectors] and b [ceil(out / length), rank, vectors] of one site."""

    undecayed: tuple[str, ...] = ("a", "b")
    factors: tuple[str, str] | None = None

    def __init__(self, site: Site, method: VBLoRA):
        super().__init__(site, method)
        del self.A, self.B
        rank, self.top = method.rank_at(site), method.top
        along, across = (-(-size // method.length) for size in (site.inputs, site.outputs))
        self.a = nn.Parameter(torch.randn(rank, along, method.vectors) * method.deviation)
        self.b = nn.Parameter(torch.randn(across, rank, method.vectors) * method.deviation)

    def mixed(self, logits: Tensor) -> Tensor:
        """Return the mixtures [..., length] that logits [..., vectors] stand for."""
        chosen, places = logits.topk(self.top, dim=-1)
        return (chosen.softmax(-1)[..., None] * self.shared.vectors[places]).sum(-2)

    def matrices(self) -> tuple[Tensor, Tensor, float]:
        down = self.mixed(self.a).flatten(1)[:, : self.site.inputs]
        up = self.mixed(self.b).transpose(1, 2).flatten(0, 1)[: self.site.outputs]
        return down, up, self.scale
