"""LoRA+ gives the two matrices of a low-rank pair learning rates of their own (Hayou et al. 2024, arXiv:2402.12354)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Gt
from torch import nn

from peftkit.layout import Layout
from peftkit.methods.lora import LoRA


@dataclass(frozen=True, kw_only=True)
class LoRAPlus(LoRA, name="lora-plus"):
    """W + s B A as in LoRA, with B [out, rank] trained at `ratio` times the learning rate of A [rank, in].

    A ratio of 1 is LoRA, bit for bit. The paper advises 2^4 and a learning rate of A below that of LoRA. Trained
    biases go with B, as in the official code.
    """

    paper: ClassVar[str] = "Hayou et al. 2024, arXiv:2402.12354"
    summary: ClassVar[str] = (
        "LoRA whose zero-started matrix learns several times faster than the other. Size and merge are those of LoRA."
    )
    default_learning_rate: ClassVar[float] = 5.6e-3

    ratio: Annotated[float, Gt(0)] = 16.0
    """Learning rate of B divided by that of A."""

    def groups(
        self, layout: Layout, parameters: Sequence[tuple[str, nn.Parameter]], learning_rate: float
    ) -> list[dict[str, Any]]:
        # One group where the rates agree: the order of the parameters, and so every sum over them, is then LoRA's.
        if self.ratio == 1:
            return super().groups(layout, parameters, learning_rate)
        slow = [(key, p) for key, p in parameters if key.endswith("/A")]
        fast = [(key, p) for key, p in parameters if not key.endswith("/A")]
        return [{"params": slow, "lr": learning_rate}, {"params": fast, "lr": learning_rate * self.ratio}]
