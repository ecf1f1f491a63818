"""SMoP learns several short soft prompts and a router that chooses one for each example (Choi et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.layers.prompted import ExamplePrompt, mean_over
from peftkit.layout import Site
from peftkit.methods.prompt_tuning import PromptTuning, start_rows
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class SMoP(PromptTuning, name="smop"):
    """An example gets the prompt p_i P_i of the largest p = softmax(W e), with P [prompts, length, width].

    W is [prompts, width], and e [width] the mean embedding of the tokens that are answered: those before the first
    trained one in training, the whole prompt in generation, so that both choose alike, and the first token of a text
    where there is no prompt. In training the logits are multiplied by 1 + noise N(0, 1), as the official code does. W
    starts orthogonal and P as in `prompt-tuning`, which this is with one prompt. Examples are padded and share
    nothing.
    """

    paper: ClassVar[str] = "Choi et al. 2023, EMNLP"
    summary: ClassVar[str] = (
        "Learns a few short soft prompts and a router that puts one of them in front of each example. A context "
        "carries the short prompt alone."
    )
    default_learning_rate: ClassVar[float] = 0.1
    by_row: ClassVar[bool] = True

    length: Annotated[int, Ge(1)] = 5
    """Number of embeddings of each prompt."""
    prompts: Annotated[int, Ge(1)] = 4
    """Number of prompts to choose from."""
    noise: Annotated[float, Ge(0)] = 0.1
    """Standard deviation of the factors of the router's logits in training."""

    def build(self, site: Site) -> Adapter:
        return RoutedPrompt(site, self)


class RoutedPrompt(ExamplePrompt):
    """Prompts P [prompts, length, width] and the router W [prompts, width]."""

    undecayed: tuple[str, ...] = ("P",)

    def __init__(self, site: Site, method: SMoP):
        super().__init__(site, method.length)
        self.noise = method.noise
        rows = start_rows(site, method, method.prompts * method.length)
        self.P = nn.Parameter(rows.unflatten(0, (method.prompts, method.length)))
        self.W = nn.Parameter(torch.empty(method.prompts, site.outputs))
        nn.init.orthogonal_(self.W)

    @property
    def drawn(self) -> Tensor | None:
        return self.P.flatten(0, 1)

    def rows_of(self, y: Tensor, prompt: Tensor) -> Tensor:
        mean = mean_over(y, prompt)
        logits = mean @ self.W.to(mean.dtype).T
        if self.training and self.noise:
            logits = logits * (1 + self.noise * torch.randn_like(logits))
        best, choice = logits.softmax(-1).max(-1)
        return best[:, None, None] * self.P[choice]
