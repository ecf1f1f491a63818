"""(IA)^3 scales keys, values and feed-forward activations by learned vectors (Liu et al. 2022, arXiv:2205.05638)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site, Standing, matched, otherwise, parse_layers
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import LinearAdapter

KEY_NORMS = ("k_norm", "k_layernorm", "key_layernorm", "qk_norm")
"""What attention modules call the norm of their keys."""


@dataclass(frozen=True, kw_only=True)
class IA3(Targeted, name="ia3"):
    """K = l_k * (W_k x + b_k), V = l_v * (W_v x + b_v), and the feed-forward's last layer W (l_ff * h) + b.

    l_k, l_v have the size of keys and values, l_ff that of the feed-forward's inner activations; all are ones at the
    start, which is thus the base. A merge puts l_k and l_v on rows and biases, l_ff on columns. The official T5
    code scales the output of the layer before the last, which is the same function. Of a block of experts each
    has an l_ff of its own. Where a model norms the keys of each head behind W_k (Qwen3, Gemma 3), l_k stands in front
    of that norm: it turns a key and leaves its length to the norm, so that a factor common to a head does nothing.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "scaling"
    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2205.05638"
    summary: ClassVar[str] = (
        "Multiplies keys, values and feed-forward activations by learned vectors. Very few parameters, no cost once "
        "merged."
    )
    default_learning_rate: ClassVar[float] = 0.32
    rate_falls_with_width: ClassVar[bool] = False

    stacked: ClassVar[tuple[str, ...]] = ("feedforward",)
    by_weight: ClassVar[bool] = True

    targets: Targets = ("k", "v")
    """Linears whose outputs are scaled: roles, groups or module-name patterns."""
    feedforward: Targets = ("down",)
    """Linears whose inputs are scaled."""

    def standing(self, layout: Layout) -> Standing:
        after, before = (
            self.named(layout, option) if getattr(self, option) else Standing([])
            for option in ("targets", "feedforward")
        )
        twice = {site.path for site in after.sites} & {site.path for site in before.sites}
        if twice:
            raise PeftkitError(
                f"{self.name}: targets and feedforward both name {min(twice)}: scale its output or its input."
            )
        if not after.sites and not before.sites:
            return otherwise(layout, ("k", "v"), parse_layers(self.layers))
        return Standing(after.sites + before.sites, {**after.replaced, **before.replaced})

    def notices(self, layout: Layout) -> list[str]:
        keys = [site for site in self.sites(layout) if site.role == "k" and not self._before(site)]
        found = (next((path for path in _norms_behind(site) if path in layout.modules), None) for site in keys)
        norm = next((path for path in found if path is not None), None)
        line = f"{self.name}: {norm} norms the keys that are scaled, so that their direction changes and no length does"
        return [*super().notices(layout), *([line] if norm is not None else [])]

    def build(self, site: Site) -> Adapter:
        return Scale(site, self._before(site))

    def _before(self, site: Site) -> bool:
        if site.stack is not None:
            return True
        names = (self.feedforward,) if isinstance(self.feedforward, str) else self.feedforward
        return any(matched(name, site) for name in names)


def _norms_behind(site: Site) -> list[str]:
    """Return the paths at which the norm of the keys would stand."""
    return [f"{site.path.rpartition('.')[0]}.{name}" for name in KEY_NORMS]


class Scale(LinearAdapter):
    """A vector that multiplies the output [out] or, with `before`, the input [in] of a linear."""

    batched: ClassVar[bool] = True

    def __init__(self, site: Site, before: bool):
        super().__init__(site)
        self.before = before
        self.scale = nn.Parameter(torch.ones(site.inputs if before else site.outputs))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        if self.before:
            return call(x * self.scale.to(x.dtype))
        y = call(x)
        return y * self.scale.to(y.dtype)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale = self.scale.to(weight.dtype)
        if self.before:
            return weight * scale.unsqueeze(-2), bias
        return weight * scale.unsqueeze(-1), None if bias is None else bias * self.scale
