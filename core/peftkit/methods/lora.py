"""LoRA adds a trainable product of two thin matrices to a frozen weight (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.kernels.low_rank import add_pair
from peftkit.layers.split import Split
from peftkit.layout import Layout, Site, matched, own_parameters, parse_layers
from peftkit.method import Learns, Method, Targets
from peftkit.methods.inits import INITS, check_split, saved_pairs, splits
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.low_rank import from_hf_peft, to_hf_peft


@dataclass(frozen=True, kw_only=True)
class LoRA(Method, name="lora"):
    """W + s B A with A [rank, in], B [out, rank] s = alpha / rank; B is zero at the start, which is thus the base.

    The official code and Hugging Face peft draw A from the Kaiming uniform distribution (a = sqrt 5) where the paper
    says Gaussian: `init: kaiming` is the default, `init: gaussian` the paper's. With `init: pissa` s B A starts as the
    principal part of W (Meng et al. 2024, arXiv:2404.02948; `pissa-fast` nearly does by a few products with W), with
    `init: olora` as the first rank columns and rows of its QR decomposition (Büyükakyüz 2024, arXiv:2406.01775), and
    the frozen weight is the rest. `init: loftq` and `lq-lora` have s B A answer what packing W loses.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    summary: ClassVar[str] = "Adds a trainable product of two thin matrices to frozen weights. It merges into them."
    default_learning_rate: ClassVar[float] = 0.018
    size: ClassVar[str | None] = "rank"
    learns: ClassVar[Learns] = Learns(loss=3.0, steps=60, learning_rate=1.5e-2)
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"rank": 4, "alpha": 4, "targets": ["linear", "head"], "rank_stabilised": True, "init": "gaussian"},
        {"targets": "mlp", "rank_pattern": {"down": 3}, "alpha_pattern": {"up": 5.0}, "layers": "1", "bias": "adapted"},
        {"targets": "linear", "rank": 4, "init": "pissa"},
        {"targets": ["q", "v", "up"], "rank": 3, "alpha": 2, "init": "olora", "bias": "adapted"},
    )

    plain_pair: ClassVar[bool] = True
    """Whether it adds s B A as it stands from the first step on."""

    rank: Annotated[int, Ge(1)] = 8
    """Inner size of the product B A."""
    alpha: Annotated[float, Gt(0)] = 16.0
    """Scale: the update is multiplied by alpha / rank."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an input element of the adapter in training."""
    targets: Targets = ("q", "v")
    """Roles (q k v o gate up down head), groups (attention, mlp, linear) or module-name patterns."""
    exclude: tuple[str, ...] = ()
    """Targets to leave out again."""
    layers: tuple[int, ...] | str | None = None
    """Layers to adapt, such as 0-3,8; all by default."""
    rank_pattern: Mapping[str, Annotated[int, Ge(1)]] = field(default_factory=dict)
    """Other ranks by role, group or module-name pattern; the first match counts."""
    alpha_pattern: Mapping[str, Annotated[float, Gt(0)]] = field(default_factory=dict)
    """Other alphas by role, group or module-name pattern; the first match counts."""
    bias: Literal["none", "adapted", "all"] = "none"
    """Which biases of the model are trained too: none, those of adapted modules, or all."""
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv:2312.03732)."""
    init: str = "kaiming"
    """Start of the pair: drawn (kaiming, gaussian) or found from W (pissa, pissa-fast, olora, loftq, lq-lora)."""

    @property
    def splits_base(self) -> bool:
        return splits(self.init)

    def sites(self, layout: Layout) -> list[Site]:
        sites = layout.resolve(self.targets, parse_layers(self.layers), self.exclude)
        for site in sites:
            if self.rank_at(site) > min(site.inputs, site.outputs):
                raise PeftkitError(
                    f"{self.name}: rank {self.rank_at(site)} is larger than {site.id} [{site.outputs}, {site.inputs}] "
                    f"allows: choose at most {min(site.inputs, site.outputs)}, or give this module its own rank in "
                    "rank_pattern."
                )
        check_split(self.name, self.init, self.plain_pair, sites)
        return sites

    def build(self, site: Site) -> Adapter:
        return LowRank(site, self)

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        module, _, kind = name.rpartition(".")
        if kind != "bias" or self.bias == "none":
            return False
        return self.bias == "all" or any(site.path == module for site in self.sites(layout))

    def count(self, layout: Layout) -> int:
        own = own_parameters(layout.model)
        return self._pairs(layout) + sum(p.numel() for name, p in own if self.select(layout, name, p))

    def stored(self, layout: Layout) -> int:
        return self.count(layout) + self._pairs(layout) * saved_pairs(self.init)

    def _pairs(self, layout: Layout) -> int:
        return sum(self.rank_at(site) * (site.inputs + site.outputs) for site in self.sites(layout))

    def rank_at(self, site: Site) -> int:
        """Return the rank at one site."""
        return next((rank for pattern, rank in self.rank_pattern.items() if matched(pattern, site)), self.rank)

    def scale_at(self, site: Site) -> float:
        """Return the factor s of one site."""
        alpha = next((alpha for pattern, alpha in self.alpha_pattern.items() if matched(pattern, site)), self.alpha)
        rank = self.rank_at(site)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def hf_peft(self, adapters: Mapping[str, Adapter], model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self.bias != "none":
            raise PeftkitError(f"{self.name}: trained biases do not travel to Hugging Face peft: use --format merged.")
        pairs = {key: (*adapter.pair(), adapter.site) for key, adapter in cast(dict[str, LowRank], adapters).items()}
        return to_hf_peft(pairs, self.dropout)

    @classmethod
    def from_hf_peft(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout
    ) -> tuple[Method, dict[str, Tensor]]:
        options, state = from_hf_peft(config, tensors)
        return cls(**options), state


class LowRank(Split):
    """A pair of thin matrices A [rank, in] and B [out, rank] in fp32 beside a frozen linear."""

    def __init__(self, site: Site, method: LoRA):
        super().__init__(site)
        rank = method.rank_at(site)
        self.scale, self.dropout = method.scale_at(site), method.dropout
        self.A = nn.Parameter(torch.empty(rank, site.inputs))
        self.B = nn.Parameter(torch.empty(site.outputs, rank))
        INITS[method.init](self)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        inside = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return add_pair(call, x, inside, self.A, self.B, self.scale)

    def delta(self, weight: Tensor) -> Tensor:
        return (self.B @ self.A) * self.scale
