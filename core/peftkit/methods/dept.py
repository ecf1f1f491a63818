"""DePT learns a short soft prompt and a low-rank change of the embeddings by position (Shi and Lipani 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.methods.prompt_tuning import Prompt, PromptTuning
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.own_attention import hollow


@dataclass(frozen=True, kw_only=True)
class DePT(PromptTuning, name="dept"):
    """[P; E(x) + s A[:T] B] with P [length, width], A [positions, rank] and B [rank, width]; s = alpha / sqrt(rank).

    A is read by the place of a token in its own text, soft prompts and padding on the left not counted; generated
    tokens count on. A starts as LoRA's and B at zero, so that P alone acts at first, which starts as in
    `prompt-tuning`. With `budget`, the rank is what leaves P, A and B the size of a prompt of that many rows:
    length d + rank (positions + d) = budget d, rounded down. The official code is for encoders, whose texts are padded
    on the right.
    """

    paper: ClassVar[str] = "Shi and Lipani 2023, arXiv:2309.05173"
    summary: ClassVar[str] = (
        "Learns a soft prompt that is shorter than that of prompt tuning, and with the numbers this saves a low-rank "
        "change of the embeddings at each position. It costs less of the context."
    )
    default_learning_rate: ClassVar[float] = 0.18

    length: Annotated[int, Ge(1)] = 13
    """Number of prompt embeddings; the paper uses 60 of the 100 of prompt tuning, or 40."""
    rank: Annotated[int, Ge(1)] = 3
    """Inner size of the change; the paper uses 30 for a prompt of 60, or 45 for one of 40."""
    budget: Annotated[int, Ge(1)] | None = None
    """Rows of a soft prompt of the same size, which then decides the rank."""
    positions: Annotated[int, Ge(1)] = 256
    """The most tokens of a text, its answer included; a longer one is refused."""
    alpha: Annotated[float, Gt(0)] = 16.0
    """Numerator of the scale s."""
    ratio: Annotated[float, Gt(0)] = 0.01
    """Learning rate of A and B as a part of that of P; the paper searches 1e-4 to 5e-3 beside 0.3."""

    def rank_for(self, width: int) -> int:
        """Return the rank in a model of this width; PeftkitError where the budget leaves none."""
        if self.budget is None:
            return self.rank
        rank = (self.budget - self.length) * width // (self.positions + width)
        if rank < 1:
            least = self.length + math.ceil((self.positions + width) / width)
            raise PeftkitError(
                f"{self.name}: a budget of {self.budget} rows leaves nothing for a change of {self.positions} "
                f"positions beside a prompt of {self.length}: set budget to at least {least}, or lower length."
            )
        return rank

    def sites(self, layout: Layout) -> list[Site]:
        self.rank_for(layout.embedding().outputs)
        return super().sites(layout)

    def build(self, site: Site) -> Adapter:
        return DecomposedPrompt(site, self)

    def groups(
        self, layout: Layout, parameters: Sequence[tuple[str, nn.Parameter]], learning_rate: float
    ) -> list[dict[str, Any]]:
        prompts = [(key, p) for key, p in parameters if key.endswith("/P")]
        pairs = [(key, p) for key, p in parameters if not key.endswith("/P")]
        return [{"params": prompts, "lr": learning_rate}, {"params": pairs, "lr": learning_rate * self.ratio}]


class DecomposedPrompt(Prompt):
    """A prompt P [length, width], and A [positions, rank] and B [rank, width] behind it."""

    reads: ClassVar[Literal["", "tokens", "prompt"]] = "tokens"
    undecayed: tuple[str, ...] = ("P", "A", "B")

    def __init__(self, site: Site, method: DePT):
        super().__init__(site, method)
        rank = method.rank_for(site.outputs)
        self.scale = method.alpha / math.sqrt(rank)
        self.A = nn.Parameter(torch.empty(method.positions, rank))
        self.B = nn.Parameter(torch.zeros(rank, site.outputs))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y, tokens = super().forward(call, x), self.tokens
        index = tokens.index
        if not hollow(index) and int(index.max()) >= len(self.A):
            raise PeftkitError(
                f"dept: a text has {int(index.max()) + 1} tokens, and {len(self.A)} positions have a change: set "
                "positions to what the longest text and its answer have, or lower train.max_length and "
                "generation.max_new_tokens."
            )
        change = F.embedding(index.clamp(0, len(self.A) - 1), self.scale * (self.A @ self.B))
        return y + (change * (x < self.site.inputs).unsqueeze(-1)).to(y.dtype)
