"""LoRA and a soft prompt trained together, a direction that the position paper on tuning large models names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt
from torch import nn

from peftkit.layout import Layout
from peftkit.method import Method, Targets
from peftkit.methods.lora import LoRA
from peftkit.methods.prompt_tuning import PromptTuning


@dataclass(frozen=True, kw_only=True)
class LoRAPrompt(Method, name="lora-prompt"):
    """`lora` and `prompt-tuning` with their formulas and starts; the prompt's rate is `ratio` times that of the pairs.

    Each is saved and switched off by itself: without the one, the other computes what it does alone.
    """

    port: ClassVar[str] = "linear + embedding"
    family: ClassVar[str] = "combination"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685, and Lester et al. 2021, arXiv:2104.08691"
    summary: ClassVar[str] = (
        "Trains low-rank pairs and a soft prompt together, the prompt at a larger learning rate. Afterwards either can "
        "be switched off."
    )
    default_learning_rate: ClassVar[float] = 0.018
    mergeable: ClassVar[bool] = False

    rank: Annotated[int, Ge(1)] = 8
    """Inner size of the low-rank pairs."""
    alpha: Annotated[float, Gt(0)] = 16.0
    """Scale: the update of the pairs is multiplied by alpha / rank."""
    targets: Targets = ("q", "v")
    """The linear maps with a pair: roles, groups or module-name patterns."""
    length: Annotated[int, Ge(1)] = 20
    """Rows of the soft prompt."""
    ratio: Annotated[float, Gt(0)] = 10.0
    """The learning rate of the prompt over that of the pairs."""

    def parts(self) -> tuple[Method, ...]:
        rate: dict[str, Any] = {"learning_rate": self.learning_rate}
        pairs = LoRA(rank=self.rank, alpha=self.alpha, targets=self.targets, **rate)
        return pairs, QuickPrompt(length=self.length, ratio=self.ratio, **rate)


@dataclass(frozen=True, kw_only=True)
class QuickPrompt(PromptTuning):
    """The prompt of the combination, whose rate is a multiple of the pairs'."""

    name: ClassVar[str] = "lora-prompt/prompt"
    default_learning_rate: ClassVar[float] = LoRAPrompt.default_learning_rate

    ratio: float = 10.0

    def rate(self, width: int) -> float:
        # The pairs' default, which falls with the width: the ratio is between the two.
        return LoRA().rate(width)

    def groups(
        self, layout: Layout, parameters: Sequence[tuple[str, nn.Parameter]], learning_rate: float
    ) -> list[dict[str, Any]]:
        return super().groups(layout, parameters, learning_rate * self.ratio)
