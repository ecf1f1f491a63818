"""SSF scales and shifts the outputs of frozen layers (Lian et al. 2022, arXiv:2210.08823)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from peftkit.layout import Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import LinearAdapter


@dataclass(frozen=True, kw_only=True)
class SSF(Targeted, name="ssf"):
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

    targets: Targets = "linear"
    shift: Literal["auto", "always"] = "auto"
    """Where outputs are shifted: where the layer has a bias, or everywhere."""
    variant: Literal["paper", "official"] = "paper"
    """Start unchanged, or with the small noise of the official code."""

    def build(self, site: Site) -> Adapter:
        return ScaleAndShift(site, self)

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
            nn.init.normal_(self.gamma, mean=1.0, std=0.02)
            if self.beta is not None:
                nn.init.normal_(self.beta, mean=0.0, std=0.02)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        scaled = y * self.gamma.to(y.dtype)
        return scaled if self.beta is None else scaled + self.beta.to(y.dtype)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scaled = None if bias is None else bias * self.gamma
        if self.beta is not None:
            scaled = self.beta.detach().clone() if scaled is None else scaled + self.beta
        return weight * self.gamma[:, None], scaled
