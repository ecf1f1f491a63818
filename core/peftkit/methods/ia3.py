"""(IA)^3 scales keys, values and feed-forward activations by learned vectors (Liu et al. 2022, arXiv:2205.05638)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site, matched, parse_layers
from peftkit.method import Learns, Method, Targets
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import LinearAdapter
from peftkit.ports.low_rank import PREFIX
from peftkit.quantization.weight import shape

SUFFIX = ".ia3_l"


@dataclass(frozen=True, kw_only=True)
class IA3(Method, name="ia3"):
    """K = l_k * (W_k x + b_k), V = l_v * (W_v x + b_v), and the feed-forward's last layer W (l_ff * h) + b.

    l_k, l_v have the size of keys and values, l_ff that of the feed-forward's inner activations; all are ones at the
    start, which is thus the base. A merge puts l_k and l_v on rows and biases, l_ff on columns. The official T5
    code scales the output of the layer before the last, which is the same function.
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
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"targets": ["attention", "up"], "feedforward": []},
        {"targets": [], "feedforward": ["o", "down"]},
    )
    learns: ClassVar[Learns] = Learns(loss=4.0, steps=60, learning_rate=1e-1)

    targets: Targets = ("k", "v")
    """Linears whose outputs are scaled: roles, groups or module-name patterns."""
    feedforward: Targets = ("down",)
    """Linears whose inputs are scaled."""
    layers: tuple[int, ...] | str | None = None
    """Layers to adapt, such as 0-3,8; all by default."""

    def sites(self, layout: Layout) -> list[Site]:
        layers = parse_layers(self.layers)
        after, before = (layout.resolve(names, layers) if names else [] for names in (self.targets, self.feedforward))
        both = {site.path for site in after} & {site.path for site in before}
        if both:
            raise PeftkitError(
                f"{self.name}: targets and feedforward both name {min(both)}: scale its output or its input."
            )
        return after + before

    def build(self, site: Site) -> Adapter:
        return Scale(site, self._before(site))

    def count(self, layout: Layout) -> int:
        return sum(site.inputs if self._before(site) else site.outputs for site in self.sites(layout))

    def _before(self, site: Site) -> bool:
        names = (self.feedforward,) if isinstance(self.feedforward, str) else self.feedforward
        return any(matched(name, site) for name in names)

    def hf_peft(self, adapters: Mapping[str, Adapter], model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        scales: dict[str, Tensor] = {}
        before: set[str] = set()
        for adapter in cast(dict[str, Scale], adapters).values():
            path, rows, mine = adapter.site.path, adapter.site.rows, adapter.scale.detach()
            if adapter.before:
                before.add(path)
                if rows is not None:
                    raise PeftkitError(
                        f"{self.name}: {adapter.site.id} is a part of a module, whose input Hugging Face peft scales "
                        "for all parts alike: use --format merged."
                    )
            elif rows is not None:
                whole = scales.get(path, torch.ones((shape(adapter.site.module) or (0, 0))[0], device=mine.device))
                mine = rows.put(whole, mine)
            scales[path] = mine
        config = {
            "peft_type": "IA3",
            "task_type": "CAUSAL_LM",
            "target_modules": sorted(scales),
            "feedforward_modules": sorted(before),
            "inference_mode": True,
        }
        return config, {f"{PREFIX}{p}{SUFFIX}": s[None] if p in before else s[:, None] for p, s in scales.items()}

    @classmethod
    def from_hf_peft(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout
    ) -> tuple[Method, dict[str, Tensor]]:
        stray = next((key for key in tensors if not key.endswith(SUFFIX)), None)
        if stray is not None:
            raise PeftkitError(f"adapter_model.safetensors: the tensor '{stray}' is not part of an (IA)^3 adapter.")
        scales = {key.removeprefix(PREFIX).removesuffix(SUFFIX): tensor.float() for key, tensor in tensors.items()}
        before = tuple(path for path, scale in scales.items() if scale.shape[0] == 1 and scale.ndim == 2)
        after = tuple(path for path in scales if path not in before)
        return cls(targets=after, feedforward=before), {f"{p}/scale": s.flatten() for p, s in scales.items()}


class Scale(LinearAdapter):
    """A vector that multiplies the output [out] or, with `before`, the input [in] of a linear."""

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
        if self.before:
            return weight * self.scale, bias
        return weight * self.scale[:, None], None if bias is None else bias * self.scale
