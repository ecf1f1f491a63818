"""PEQA trains the scales of a quantized weight and nothing else (Kim et al. 2023, arXiv:2305.14152)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftkit.layout import Layout, Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter
from peftkit.ports.stored import Scales, check_stored
from peftkit.quantization.weight import INTEGERS, traits


@dataclass(frozen=True, kw_only=True)
class PEQA(Targeted, name="peqa"):
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

    targets: Targets = "linear"

    def sites(self, layout: Layout) -> list[Site]:
        sites = super().sites(layout)
        stored = [site for site in sites if self.needs in traits(site.module)]
        # Small maps stay dense, and the default leaves them out.
        return stored if stored and self.targets == type(self).targets else check_stored(sites, self.name, self.needs)

    def build(self, site: Site) -> Adapter:
        return Scales(site)
