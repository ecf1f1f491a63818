"""LongQLoRA trains low-rank pairs on a packed base and long texts within groups of tokens (Yang 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Lt

from peftkit.layout import Site
from peftkit.method import Method, Targets
from peftkit.methods.lora import LoRA
from peftkit.methods.s2_attn import Shifted


@dataclass(frozen=True, kw_only=True)
class LongQLoRA(Method, name="longqlora"):
    """`lora` on every linear map inside the layers under the attention of `s2-attn`; embeddings and norms stay frozen.

    It starts as the base. The packed base and the positions are the recipe's: `quantization: nf4`, and
    `model: {name: NAME, rope_factor: 2}` for position interpolation. The paper trains 1,000 steps at 2e-4 on texts of
    8,192 tokens in groups of a quarter, with paged AdamW and gradients clipped at 0.3.
    """

    port: ClassVar[str] = "linear + attention"
    family: ClassVar[str] = "long context"
    paper: ClassVar[str] = "Yang 2023, arXiv:2311.04879"
    summary: ClassVar[str] = (
        "Trains low-rank pairs of all linear maps on long texts, while tokens attend within shifted groups. It is "
        "meant for a base in four bits."
    )
    default_learning_rate: ClassVar[float] = LoRA.default_learning_rate
    rate_searched: ClassVar[bool] = False
    size: ClassVar[str | None] = "rank"

    rank: Annotated[int, Ge(1)] = 64
    """Inner size of the low-rank pairs; that of a smaller map where it has no room for it."""
    alpha: Annotated[float, Gt(0)] = 16.0
    """Scale: the update of the pairs is multiplied by alpha / rank."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Probability of dropping an input element of a pair in training."""
    targets: Targets = "linear"
    """The linear maps with a pair: roles, groups or module-name patterns."""
    group: Annotated[int, Ge(2)] = 2048
    """Tokens of a group: a quarter of the length that is trained at in the paper; rows up to half of it see all."""

    def parts(self) -> tuple[Method, ...]:
        pairs = FittingPairs(
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            targets=self.targets,
            learning_rate=self.learning_rate,
        )
        return pairs, Shifted(group=self.group)


class FittingPairs(LoRA):
    """The pairs of the combination, whose rank is at most what a map allows: more says nothing more."""

    def fitting(self, site: Site, rank: int) -> int:
        return min(rank, site.inputs, site.outputs)
