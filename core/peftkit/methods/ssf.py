"""SSF scales and shifts the outputs of frozen layers (Lian et al. 2022, arXiv:2210.08823)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from peftkit.layout import Layout, Site, parse_layers
from peftkit.method import Learns, Method, Targets
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import LinearAdapter


@dataclass(frozen=True, kw_only=True)
class SSF(Method, name="ssf"):
    """y = gamma * (W x + b) + beta with gamma and beta [out]; the merged layer is (gamma W, gamma b + beta).

    The paper shifts every layer. A layer without a bias has no place for the shift: `shift: auto`, the default,
    leaves beta out there, so that the merged model keeps its architecture; `shift: always` is the paper's, and
    merging it gives such layers a bias that most configurations cannot describe. The official code starts from
    gamma ~ N(1, 0.02^2) and beta ~ N(0, 0.02^2), which moves the base (`variant: official`); by default both start
    where the layer is unchanged (`variant: paper`). Normalisation layers are left as they are: the linear that
    follows cannot take their shift without a bias.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "scaling"
    paper: ClassVar[str] = "Lian et al. 2022, arXiv:2210.08823"
    summary: ClassVar[str] = (
        "Scales and shifts each output of the linear layers by learned numbers. Few parameters, no cost once merged."
    )
    default_learning_rate: ClassVar[float] = 0.18
    rate_falls_with_width: ClassVar[bool] = False
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = ({"shift": "always", "targets": ["v", "up", "down"]},)
    learns: ClassVar[Learns] = Learns(loss=3.5, steps=60, learning_rate=1e-1)

    targets: Targets = "linear"
    """Roles (q k v o gate up down head), groups (attention, mlp, linear) or module-name patterns."""
    exclude: tuple[str, ...] = ()
    """Targets to leave out again."""
    layers: tuple[int, ...] | str | None = None
    """Layers to adapt, such as 0-3,8; all by default."""
    shift: Literal["auto", "always"] = "auto"
    """Where outputs are shifted: where the layer has a bias, or everywhere."""
    variant: Literal["paper", "official"] = "paper"
    """Start unchanged, or with the small noise of the official code."""

    def sites(self, layout: Layout) -> list[Site]:
        return layout.resolve(self.targets, parse_layers(self.layers), self.exclude)

    def build(self, site: Site) -> Adapter:
        return ScaleAndShift(site, self)

    def count(self, layout: Layout) -> int:
        return sum(site.outputs * (2 if self.shifts(site) else 1) for site in self.sites(layout))

    def shifts(self, site: Site) -> bool:
        """Say whether the outputs of a site are shifted."""
        return self.shift == "always" or getattr(site.module, "bias", None) is not None


class ScaleAndShift(LinearAdapter):
    """The vectors gamma [out] and, where outputs are shifted, beta [out]."""

    def __init__(self, site: Site, method: SSF):
        super().__init__(site)
        self.gamma = nn.Parameter(torch.ones(site.outputs))
        self.beta = nn.Parameter(torch.zeros(site.outputs)) if method.shifts(site) else None
        if method.variant == "official":
            for parameter in self.parameters():
                nn.init.normal_(parameter, mean=float(parameter[0].detach()), std=0.02)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        scaled = y * self.gamma.to(y.dtype)
        return scaled if self.beta is None else scaled + self.beta.to(y.dtype)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scaled = None if bias is None else bias * self.gamma
        if self.beta is not None:
            scaled = self.beta.detach().clone() if scaled is None else scaled + self.beta
        return weight * self.gamma[:, None], scaled
