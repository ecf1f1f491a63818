"""Uni-LoRA makes all low-rank pairs of a model from one short vector (Li et al. 2025, arXiv:2506.00799)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from peftkit.layers.low_rank import LowRank
from peftkit.layers.places import generator
from peftkit.layout import Layout, Site
from peftkit.method import Ranked
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class UniLoRA(Ranked, name="unilora"):
    """W + B A whose entries, over all weights, are those of P v: v [length] trained, P a random isometry.

    Each row of P has one entry other than zero, in a place drawn uniformly, so that an entry of A or B is one of v over
    the square root of how often that one is taken; P'P = I. The places follow from `projection_seed` and the site's
    name and are not saved unless `save_projection` asks for it. v starts uniform within 0.02; B A is small and not
    zero. Hugging Face peft deals the places out so that each is taken equally often.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Li et al. 2025, arXiv:2506.00799"
    summary: ClassVar[str] = (
        "Trains one short vector, from which a random projection makes the low-rank pairs of all layers. The whole "
        "adapter is that vector."
    )
    default_learning_rate: ClassVar[float] = 0.056
    rate_falls_with_width: ClassVar[bool] = False
    size: ClassVar[str | None] = "length"

    rank: Annotated[int, Ge(1)] = 4
    """Inner size of the product B A."""
    length: Annotated[int, Ge(1)] = 10_000
    """Length of the vector: all that is trained."""
    bound: Annotated[float, Gt(0)] = 0.02
    """The vector starts uniform within this bound."""
    projection_seed: Annotated[int, Ge(0)] = 0
    """Seed of the places."""
    save_projection: bool = False
    """Save the places instead of drawing them again from their seed."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an input element of the adapter in training."""

    def places(self, site: Site) -> tuple[Tensor, Tensor]:
        """Return the places in the vector of A [rank, in] and B [out, rank]."""
        drawn, rank = generator(self.projection_seed, site.id), self.rank_at(site)
        shapes = ((rank, site.inputs), (site.outputs, rank))
        down, up = (torch.randint(self.length, shape, generator=drawn, device="cpu").int() for shape in shapes)
        return down, up

    def share(self, layout: Layout) -> nn.Module:
        return SharedVector(self, self.sites(layout))

    def scale_at(self, site: Site) -> float:
        """Return the factor of the product: one."""
        return 1.0

    def initialise(self, adapter: LowRank) -> None:
        """Leave the pair: the vector makes it."""

    def build(self, site: Site) -> Adapter:
        return Projected(site, self)


class SharedVector(nn.Module):
    """The vector v [length] and one over the square root of how often each of its entries is taken."""

    weights: Tensor

    def __init__(self, method: UniLoRA, sites: list[Site]):
        super().__init__()
        self.v = nn.Parameter(torch.empty(method.length).uniform_(-method.bound, method.bound))
        taken = torch.zeros(method.length, device="cpu")
        for site in sites if not self.v.is_meta else ():
            for places in method.places(site):
                taken += torch.bincount(places.flatten(), minlength=method.length)
        self.register_buffer("weights", taken.clamp(min=1).rsqrt().to(self.v.device), method.save_projection)


class Projected(LowRank):
    """The places a [rank, in] and b [out, rank] of the pair's entries in the vector."""

    a: Tensor
    b: Tensor
    factors: tuple[str, str] | None = None

    def __init__(self, site: Site, method: UniLoRA):
        super().__init__(site, method)
        device = self.A.device
        del self.A, self.B
        for key, places in zip("ab", method.places(site), strict=True):
            self.register_buffer(key, places.to(device), method.save_projection)

    def matrices(self) -> tuple[Tensor, Tensor, float]:
        values = self.shared.v * self.shared.weights
        return values[self.a], values[self.b], self.scale
