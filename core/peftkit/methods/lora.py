"""LoRA adds a trainable product of two low-rank matrices to a frozen weight (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt
from torch import nn

from peftkit.layers.low_rank import LowRank
from peftkit.layout import Layout, Site, matched
from peftkit.method import Ranked
from peftkit.methods.inits import INITS, Measured, check_split, splits
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class LoRA(Ranked, name="lora"):
    """W + s B A with A [rank, in], B [out, rank] s = alpha / rank; B is zero at the start, which is thus the base.

    The official code and Hugging Face peft draw A from the Kaiming uniform distribution (a = sqrt 5) where the paper
    says Gaussian: `init: kaiming` is the default, `init: gaussian` the paper's. With `init: pissa` s B A starts as the
    principal part of W (Meng et al. 2024, arXiv:2404.02948; `pissa-fast` nearly does by a few products with W), with
    `init: olora` as the first rank columns and rows of its QR decomposition (Büyükakyüz 2024, arXiv:2406.01775), and
    the frozen weight is the rest. `init: milora` takes the least part of W instead. `init: loftq` and `lq-lora` have
    s B A answer what packing W loses. `eva`, `corda` and `lora-ga` look at the first 256 examples of the run, and so
    does `lq-lora-fisher`, which weighs what packing loses by how much the examples depend on it.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    summary: ClassVar[str] = "Adds a trainable product of two low-rank matrices to frozen weights. It merges into them."
    default_learning_rate: ClassVar[float] = 0.018
    by_weight: ClassVar[bool] = True
    plain_pair: ClassVar[bool] = True
    """Whether it adds s B A as it stands from the first step on."""

    rank: Annotated[int, Ge(1)] = 8
    """Inner size of the product B A."""
    alpha: Annotated[float, Gt(0)] = 16.0
    """Scale: the update is multiplied by alpha / rank."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an input element of the adapter in training."""
    rank_pattern: Mapping[str, Annotated[int, Ge(1)]] = field(default_factory=dict)
    """Other ranks by role, group or module-name pattern; the first match counts."""
    alpha_pattern: Mapping[str, Annotated[float, Gt(0)]] = field(default_factory=dict)
    """Other alphas by role, group or module-name pattern; the first match counts."""
    bias: Literal["none", "adapted", "all"] = "none"
    """Which biases of the model are trained too: none, those of adapted modules, or all."""
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv:2312.03732)."""
    init: str = "kaiming"
    """Start of the pair: drawn (kaiming, gaussian), found from W (pissa, pissa-fast, milora, olora, loftq, lq-lora) or
    from the data (eva, corda, lora-ga), or both (lq-lora-fisher)."""

    @property
    def splits_base(self) -> bool:
        return splits(self.init)

    def sites(self, layout: Layout) -> list[Site]:
        sites = super().sites(layout)
        check_split(self.name, self.init, self.plain_pair, sites)
        return sites

    def build(self, site: Site) -> Adapter:
        return LowRank(site, self)

    def initialise(self, adapter: LowRank) -> None:
        """Give A and B their start."""
        INITS[self.init](adapter)

    @property
    def idle_hooks(self) -> tuple[str, ...]:
        return () if isinstance(INITS[self.init], Measured) else ("prepare",)

    @property
    def reads_originals(self) -> bool:
        choice = INITS[self.init]
        return isinstance(choice, Measured) and choice.answers

    def prepare(self, model: nn.Module, adapters: Mapping[str, Adapter], batches: Iterable[Any]) -> None:
        choice = INITS[self.init]
        if isinstance(choice, Measured):
            choice.prepare(model, adapters, batches)

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        module, _, kind = name.rpartition(".")
        if kind != "bias" or self.bias == "none":
            return False
        return self.bias == "all" or any(site.path == module for site in self.sites(layout))

    def rank_at(self, site: Site) -> int:
        own = next((rank for pattern, rank in self.rank_pattern.items() if matched(pattern, site)), None)
        return self.fitting(site, self.rank) if own is None else own

    def scale_at(self, site: Site) -> float:
        """Return the factor s of one site."""
        alpha = next((alpha for pattern, alpha in self.alpha_pattern.items() if matched(pattern, site)), self.alpha)
        own = next((rank for pattern, rank in self.rank_pattern.items() if matched(pattern, site)), None)
        rank = own or self.rank
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)
