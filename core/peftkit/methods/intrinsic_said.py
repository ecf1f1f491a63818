"""SAID trains all weights through one short vector and a scale for each layer (Aghajanyan et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.kernels.fastfood import fastfood
from peftkit.layers.places import generator
from peftkit.layout import Layout, Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter
from peftkit.ports.linear import Delta


@dataclass(frozen=True, kw_only=True)
class IntrinsicSAID(Targeted, name="intrinsic-said"):
    """W + c_layer P z with z [dimension], zero at the start, and a scale c for each layer, one at the start.

    P is Fastfood's: signs, a Walsh-Hadamard transform, a permutation, normal numbers and a second transform, of the
    next power of two above the weight and the vector. They follow from `projection_seed` and the site's name and are
    not saved. Where the vector is longer than a weight, its projection takes that much more work. With `scales: false`
    this is DID of the same paper. The paper projects to every parameter; here the linear maps are.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Aghajanyan et al. 2020, arXiv:2012.13255"
    summary: ClassVar[str] = (
        "Trains one short vector that a fast random projection spreads over all weights. It measures how many "
        "dimensions a task needs."
    )
    default_learning_rate: ClassVar[float] = 0.032
    rate_falls_with_width: ClassVar[bool] = False
    size: ClassVar[str | None] = "dimension"

    dimension: Annotated[int, Ge(1)] = 5_000
    """Length of the vector."""
    scales: bool = True
    """Train a scale for each layer."""
    projection_seed: Annotated[int, Ge(0)] = 0
    """Seed of the projections."""
    targets: Targets = "linear"

    def share(self, layout: Layout) -> nn.Module:
        return Intrinsic(self, [site.layer for site in self.sites(layout)])

    def build(self, site: Site) -> Adapter:
        return Fastfood(site, self)


class Intrinsic(nn.Module):
    """The vector z [dimension] and the scale of each layer."""

    def __init__(self, method: IntrinsicSAID, layers: list[int | None]):
        super().__init__()
        self.z = nn.Parameter(torch.zeros(method.dimension))
        self.layers = {layer: number for number, layer in enumerate(dict.fromkeys(layers))}
        self.scales = nn.Parameter(torch.ones(len(self.layers))) if method.scales else None

    def scale(self, layer: int | None) -> Tensor | float:
        """Return the scale of a layer, or of what lies outside of all."""
        return 1.0 if self.scales is None else self.scales[self.layers[layer]]


class Fastfood(Delta):
    """The random projection of one site: signs, order and normal numbers, of one length that is a power of two."""

    signs: Tensor
    order: Tensor
    normal: Tensor

    def __init__(self, site: Site, method: IntrinsicSAID):
        super().__init__(site)
        size = 1 << (max(site.outputs * site.inputs, method.dimension) - 1).bit_length()
        drawn, home = generator(method.projection_seed, site.id), torch.empty(0).device
        if home.type == "meta":
            made = [torch.empty(size, dtype=dtype) for dtype in (torch.int8, torch.int32, torch.float32)]
        else:
            signs = torch.randint(2, (size,), generator=drawn, device="cpu", dtype=torch.int8) * 2 - 1
            order = torch.randperm(size, generator=drawn, device="cpu").int()
            made = [signs, order, torch.randn(size, generator=drawn, device="cpu")]
        for key, value in zip(("signs", "order", "normal"), made, strict=True):
            self.register_buffer(key, value, persistent=False)

    def delta(self, weight: Tensor) -> Tensor:
        count = self.site.outputs * self.site.inputs
        projected = fastfood(self.shared.z, self.signs, self.order, self.normal, count)
        return projected.view(self.site.outputs, self.site.inputs) * self.shared.scale(self.site.layer)
