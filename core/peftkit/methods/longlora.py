"""LongLoRA trains low-rank pairs, embeddings and norms on long texts within groups of tokens (Chen et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt
from torch import nn

from peftkit.layout import Layout
from peftkit.method import Method, Targets
from peftkit.methods.lora import LoRA
from peftkit.methods.s2_attn import Shifted


@dataclass(frozen=True, kw_only=True)
class LongLoRA(Method, name="longlora"):
    """`lora` on the linear maps of attention under `s2-attn`; the token embedding and every norm are trained too.

    It starts as the base. A head that is tied to the embedding is trained with it. Positions beyond those that the
    model was trained on are the recipe's: `model: {name: NAME, rope_factor: 4}`, position interpolation. All parts have
    one rate, as in the official code, which trains 1,000 steps at 2e-5 on texts of 8,192 tokens and more.
    """

    port: ClassVar[str] = "linear + own parameters + attention"
    family: ClassVar[str] = "long context"
    paper: ClassVar[str] = "Chen et al. 2023, arXiv:2309.12307"
    summary: ClassVar[str] = (
        "Trains low-rank pairs of attention with the embedding and the norms on long texts, while tokens attend "
        "within shifted groups. Afterwards the model attends to all of a text."
    )
    default_learning_rate: ClassVar[float] = 3.2e-3
    rate_searched: ClassVar[bool] = False
    size: ClassVar[str | None] = "rank"

    rank: Annotated[int, Ge(1)] = 8
    """Inner size of the low-rank pairs."""
    alpha: Annotated[float, Gt(0)] = 16.0
    """Scale: the update of the pairs is multiplied by alpha / rank."""
    targets: Targets = "attention"
    """The linear maps with a pair: roles, groups or module-name patterns."""
    group: Annotated[int, Ge(2)] = 2048
    """Tokens of a group: a quarter of the length that is trained at in the paper; rows up to half of it see all."""

    def parts(self) -> tuple[Method, ...]:
        rate: dict[str, Any] = {"learning_rate": self.learning_rate}
        return (
            LongPairs(rank=self.rank, alpha=self.alpha, targets=self.targets, **rate),
            EmbeddingAndNorms(**rate),
            Shifted(group=self.group),
        )


class LongPairs(LoRA):
    """The pairs of the combination, at its rate."""

    name: ClassVar[str] = "longlora/lora"
    default_learning_rate: ClassVar[float] = LongLoRA.default_learning_rate
    rate_searched: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class EmbeddingAndNorms(Method):
    """The token embedding and the norms, behind the last layer too."""

    name: ClassVar[str] = "longlora/embedding-and-norms"
    port: ClassVar[str] = "own parameters"
    default_learning_rate: ClassVar[float] = LongLoRA.default_learning_rate
    rate_searched: ClassVar[bool] = False

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        return name.rpartition(".")[0] in {layout.embedding().path, *layout.norms()}

    def notices(self, layout: Layout) -> list[str]:
        tied = layout.embedding().tied
        return [f"{LongLoRA.name}: the head has the embedding's weight and is trained with it"] if tied else []
