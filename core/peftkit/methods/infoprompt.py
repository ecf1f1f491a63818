"""InfoPrompt ties a soft prompt to the head and to what the model makes of texts (Wu et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import nn

from peftkit.errors import PeftkitError
from peftkit.layers.critics import Critic, Judges
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.methods.ptp import Regularised
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class InfoPrompt(Regularised, name="infoprompt"):
    """L + beta L_head + gamma L_rep: lower bounds, turned round, of what the prompt tells of the head and of states Z.

    Each is log(1 + K) minus InfoNCE, -mean log(exp f(p, y) / (exp f(p, y) + sum over K of exp f(..))) - log(1 + K),
    with f(p, y) = p C y, p the mean of the prompt's rows, and y the tokens of the texts. For L_rep y [width] are the
    last layer's states, and the others K prompts drawn with the mean and the spread of p. For L_head y are rows of the
    head, which is frozen in a language model: those of the text's own tokens, by the embedding, and the others are K
    drawn from the vocabulary. The critics C [rows' size, width] start from N(0, 1 / width) and are dropped after
    training. With beta and gamma zero this is the prompt's method.
    """

    paper: ClassVar[str] = "Wu et al. 2023, arXiv:2306.04933"
    summary: ClassVar[str] = (
        "Trains a soft prompt with two more terms of the loss, which have it tell more of the task. They are bounds of "
        "its mutual information with the head and with the model's states."
    )
    default_learning_rate: ClassVar[float] = 0.1
    rate_searched: ClassVar[bool] = False
    rate_falls_with_width: ClassVar[bool] = False

    beta: Annotated[float, Ge(0)] = 0.1
    """Weight of the bound with the head."""
    gamma: Annotated[float, Ge(0)] = 0.05
    """Weight of the bound with the states."""
    negatives: Annotated[int, Ge(1)] = 8
    """Number K of what is drawn beside each right one."""

    def parts(self) -> tuple[Method, ...]:
        critics = Critics(of=self.of, beta=self.beta, gamma=self.gamma, negatives=self.negatives)
        return (*self.prompt.parts(), critics)

    @property
    def finished(self) -> Regularised:
        return replace(super().finished, beta=0.0, gamma=0.0)


@dataclass(frozen=True, kw_only=True)
class Critics(Regularised):
    """The part with the critics, behind the last layer."""

    name: ClassVar[str] = "infoprompt/critics"
    port: ClassVar[str] = "hidden"
    default_learning_rate: ClassVar[float] = InfoPrompt.default_learning_rate
    rate_falls_with_width: ClassVar[bool] = False

    beta: float
    gamma: float
    negatives: int

    def sites(self, layout: Layout) -> list[Site]:
        self.row_size(layout)
        return layout.hidden("block", [len(layout.blocks) - 1])

    def row_size(self, layout: Layout) -> int:
        """Return the size of the prompt's rows; PeftkitError for a prompt that has none."""
        for method in self.prompt.parts():
            with torch.device("meta"):
                built = (method.build(site) for site in method.sites(layout))
                size = next((adapter.row_size for adapter in built if adapter.row_size), None)
            if size is not None:
                return size
        raise PeftkitError(f"infoprompt: '{self.prompt.name}' puts nothing in front of texts: take another method.")

    def share(self, layout: Layout) -> nn.Module:
        return Judges(self.row_size(layout), layout, head=self.beta > 0, states=self.gamma > 0)

    def build(self, site: Site) -> Adapter:
        return Critic(site, self.beta, self.gamma, self.negatives)

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        for adapter in adapters.values():
            adapter.shared.clear()

    @property
    def finished(self) -> Regularised:
        return replace(self, of=super().finished.of, beta=0.0, gamma=0.0)
