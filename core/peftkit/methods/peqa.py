"""PEQA trains the scales of a quantized weight and nothing else (Kim et al. 2023, arXiv:2305.14152)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from peftkit.layout import Layout, Site, parse_layers
from peftkit.method import Learns, Method, Targets
from peftkit.ports.adapter import Adapter
from peftkit.ports.stored import Scales, check_stored, groups
from peftkit.quantization.weight import INTEGERS


@dataclass(frozen=True, kw_only=True)
class PEQA(Method, name="peqa"):
    """W = (s + d) (q - z) with d [out, groups] trained from zero; codes q [out, in] and zero points z are frozen.

    The paper trains one scale an output, or a group of inputs: that is the storage's `group_size`. A merge that stays
    packed writes s + d in fp32 as the scales and leaves the codes alone; one into a dense weight adds d (q - z).
    """

    port: ClassVar[str] = "linear, quantized"
    family: ClassVar[str] = "quantization"
    paper: ClassVar[str] = "Kim et al. 2023, arXiv:2305.14152"
    summary: ClassVar[str] = (
        "Trains the scales of a base whose weights are stored as integers. It merges into the scales, so that the "
        "model stays as small as it was."
    )
    needs: ClassVar[str | None] = INTEGERS
    default_learning_rate: ClassVar[float] = 0.0032
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = ({"targets": ["q", "v", "down"]},)
    learns: ClassVar[Learns] = Learns(loss=3.3, steps=80, learning_rate=1e-2)

    targets: Targets = "linear"
    """Roles (q k v o gate up down head), groups (attention, mlp, linear) or module-name patterns."""
    layers: tuple[int, ...] | str | None = None
    """Layers to adapt, such as 0-3,8; all by default."""

    def sites(self, layout: Layout) -> list[Site]:
        return check_stored(self, layout.resolve(self.targets, parse_layers(self.layers)))

    def build(self, site: Site) -> Adapter:
        return Scales(site)

    def count(self, layout: Layout) -> int:
        return sum(site.outputs * groups(site) for site in self.sites(layout))
