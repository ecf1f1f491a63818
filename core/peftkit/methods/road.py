"""RoAd turns pairs of outputs by learned angles and scales them (Liao and Monz 2024, arXiv:2409.00119)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.method import Targeted
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import LinearAdapter


@dataclass(frozen=True, kw_only=True)
class RoAd(Targeted, name="road"):
    """y = R (W x + b), R sparse: output i is a_i cos(t_i) z_i -+ a_i sin(t_i) z_j, z_j half a group away.

    Of each pair the first output loses, the second gains the other's share. The variant says how many numbers stand
    behind each pair: 1 has one angle t and scale a for both outputs, 2 one for each output, 4 its own for each of the
    four places. Angles are zero and scales one at the start, which is thus the base. A merge turns the bias too.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "scaling"
    paper: ClassVar[str] = "Liao and Monz 2024, arXiv:2409.00119"
    summary: ClassVar[str] = (
        "Turns pairs of outputs in the plane and scales them. As few numbers as (IA)^3, by element, so that many "
        "adapters share a batch."
    )
    default_learning_rate: ClassVar[float] = 0.32
    rate_falls_with_width: ClassVar[bool] = False
    by_weight: ClassVar[bool] = True

    variant: Literal[1, 2, 4] = 1
    """Numbers behind each place: RoAd1, RoAd2 or RoAd4 of the paper."""
    group: Annotated[int, Ge(2), MultipleOf(2)] | None = None
    """Outputs in whose halves pairs lie; by default the largest even divisor up to 64."""

    def sites(self, layout: Layout) -> list[Site]:
        sites = super().sites(layout)
        for site in sites:
            self.group_at(site)
        return sites

    def group_at(self, site: Site) -> int:
        """Return the size of groups at a site."""
        if self.group is None and site.outputs % 2 == 0:
            return next(size for size in range(64, 0, -2) if site.outputs % size == 0)
        if self.group is None or site.outputs % self.group:
            raise PeftkitError(
                f"{self.name}: {'no even group' if self.group is None else f'a group of {self.group}'} divides the "
                f"{site.outputs} outputs of {site.id}: choose another, or leave it out of targets."
            )
        return self.group

    def build(self, site: Site) -> Adapter:
        return Turned(site, self.group_at(site), self.variant)


class Turned(LinearAdapter):
    """Angles t and scales a [out variant / 2] in the order of Hugging Face peft: by group, then by half."""

    def __init__(self, site: Site, group: int, variant: int):
        super().__init__(site)
        self.group, self.variant = group, variant
        self.t = nn.Parameter(torch.zeros(site.outputs * variant // 2))
        self.a = nn.Parameter(torch.ones(site.outputs * variant // 2))

    def columns(self) -> tuple[Tensor, Tensor]:
        """Return what multiplies each output and what its partner [out], without the sign."""
        if self.variant == 4:
            t, a = (each.view(-1, 2, self.group) for each in (self.t, self.a))
            return (a[:, 0] * t[:, 0].cos()).flatten(), (a[:, 1] * t[:, 1].sin()).flatten()
        t, a = self.t, self.a
        if self.variant == 1:
            t, a = (each.view(-1, self.group // 2).repeat_interleave(2, 0).flatten() for each in (t, a))
        return a * t.cos(), a * t.sin()

    def turned(self, y: Tensor) -> Tensor:
        """Return R y [..., out]."""
        own, other = self.columns()
        first, second = y.unflatten(-1, (-1, 2, self.group // 2)).unbind(-2)
        partners = torch.stack([-second, first], -2).flatten(-3)
        return y * own.to(y.dtype) + partners * other.to(y.dtype)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        return self.turned(call(x))

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.turned(weight.T).T, None if bias is None else self.turned(bias)
