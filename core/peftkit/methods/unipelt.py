"""UniPELT gates a low-rank pair, a prefix and an adapter in each layer token by token (Mao et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from peftkit.layers.bottleneck import Bottleneck
from peftkit.layers.gate import Gate
from peftkit.layers.low_rank import LowRank
from peftkit.layout import Site
from peftkit.method import Method
from peftkit.methods.lora import LoRA
from peftkit.methods.pfeiffer_adapter import PfeifferAdapter
from peftkit.methods.prefix_tuning import PrefixTuning, ProjectedPrefix
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.attention import Attend
from peftkit.ports.linear import linear


@dataclass(frozen=True, kw_only=True)
class UniPELT(Method, name="unipelt"):
    """q, v: W x + g B A x; attention: (1 - g) Attn(K, V) + g Attn([P_k; K], [P_v; V]); feed-forward block: o + g a(o).

    `lora`, whose scale g replaces, `prefix-tuning` and `pfeiffer-adapter` a, with their shapes and starts. Each q, v,
    attention and a has a gate g = sigmoid(w x + b) of what it reads, x [width]; w [1, width] starts from N(0, 0.02^2)
    and b [1] at zero, so that g is about a half. The paper averages g over all tokens, which in a decoder would tell of
    later ones: here each token has its own. The paper multiplies P_k and P_v by g, which leaves the prefix a weight in
    the softmax at g = 0; here g multiplies that weight, so that 0 is the attention without the prefix and 1 with it.
    """

    port: ClassVar[str] = "linear + attention"
    family: ClassVar[str] = "combination"
    paper: ClassVar[str] = "Mao et al. 2022, arXiv:2110.07577"
    summary: ClassVar[str] = (
        "Trains a low-rank pair, a prefix and an adapter in each layer together. Gates that read the hidden states "
        "choose for each token how much each of them does."
    )
    default_learning_rate: ClassVar[float] = 0.01
    mergeable: ClassVar[bool] = False

    rank: Annotated[int, Ge(1)] = 8
    """Inner size of the low-rank pairs."""
    prefix_length: Annotated[int, Ge(1)] = 10
    """Number of prefix positions of attention."""
    projection: Annotated[int, Ge(1)] | None = 512
    """Width inside the MLP that makes the prefix in training; null trains the prefix itself."""
    bottleneck: Annotated[int, Ge(1)] = 48
    """Inner size of the adapter."""
    layers: tuple[int, ...] | str | None = None
    """Layers that are changed, such as 0-3,8; all by default."""

    @property
    def finished(self) -> Method:
        return replace(self, projection=None)

    def parts(self) -> tuple[Method, ...]:
        every: dict[str, Any] = {"layers": self.layers, "learning_rate": self.learning_rate}
        return (
            GatedLoRA(rank=self.rank, alpha=self.rank, **every),
            GatedPrefixTuning(length=self.prefix_length, projection=self.projection, **every),
            GatedAdapter(bottleneck=self.bottleneck, **every),
        )


class GatedLoRA(LoRA):
    """The low-rank part: q and v of each layer."""

    name: ClassVar[str] = "unipelt/lora"
    default_learning_rate: ClassVar[float] = UniPELT.default_learning_rate
    mergeable: ClassVar[bool] = False

    def build(self, site: Site) -> Adapter:
        return GatedPair(site, self)


class GatedPrefixTuning(PrefixTuning):
    """The prefix of each layer."""

    name: ClassVar[str] = "unipelt/prefix"
    default_learning_rate: ClassVar[float] = UniPELT.default_learning_rate

    def build(self, site: Site) -> Adapter:
        return GatedPrefix(site, self)


class GatedAdapter(PfeifferAdapter):
    """The adapter behind each feed-forward block."""

    name: ClassVar[str] = "unipelt/adapter"
    default_learning_rate: ClassVar[float] = UniPELT.default_learning_rate

    def build(self, site: Site) -> Adapter:
        return Bottleneck(site, self.bottleneck, self.activation, gated=True)


class GatedPair(LowRank):
    """A low-rank pair whose gate stands in the place of the scale."""

    def __init__(self, site: Site, method: LoRA):
        super().__init__(site, method)
        self.gate = Gate(site.inputs)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        return call(x) + linear(linear(x, self.A), self.B) * self.gate(x)


class GatedPrefix(ProjectedPrefix):
    """A prefix whose share of each query's attention is multiplied by the query's gate."""

    def __init__(self, site: Site, method: PrefixTuning):
        super().__init__(site, method)
        self.gate = Gate(site.inputs)

    def forward(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        alone = attend(q, k, v, mask)
        gate = self.gate(self.input).to(alone.dtype)
        gate = gate.unsqueeze(-1) if alone.ndim > gate.ndim else gate
        return torch.lerp(alone, super().forward(attend, q, k, v, mask), gate)
