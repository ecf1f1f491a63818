"""Prompt tuning learns input embeddings that stand in front of every text (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.layout import Layout, Site
from peftkit.method import Learns, Method
from peftkit.ports.adapter import Adapter
from peftkit.ports.embedding import SoftPrompt

FREQUENT = 5000


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Method, name="prompt-tuning"):
    """The embeddings E(x) [T, width] become [P; E(x)] with a trainable P [length, width], held in fp32.

    The prompt stands behind the beginning-of-sequence token where there is one, and directly in front of the text
    where a batch is padded on the left; its positions carry no label, and those of the text move by `length`. Every
    start moves the logits. Hugging Face peft puts its prompt in front of the beginning-of-sequence token: the two are
    equal only on inputs without that token, so that nothing is exported there.
    """

    port: ClassVar[str] = "embedding"
    family: ClassVar[str] = "soft prompt"
    paper: ClassVar[str] = "Lester et al. 2021, arXiv:2104.08691"
    summary: ClassVar[str] = (
        "Learns a few input embeddings that stand in front of every text. The model itself stays as it is, and the "
        "prompt costs its length in every context."
    )
    default_learning_rate: ClassVar[float] = 3e-2
    size: ClassVar[str | None] = "length"
    mergeable: ClassVar[bool] = False
    moves_base: ClassVar[bool] = True
    trials: ClassVar = ({"length": 8, "init": "random"},)
    learns: ClassVar[Learns] = Learns(loss=3.5, steps=80, learning_rate=0.1)

    length: Annotated[int, Ge(1)] = 20
    """Number of prompt embeddings; the paper uses 100 for T5."""
    init: Literal["vocabulary", "random"] = "vocabulary"
    """How P starts: embeddings of tokens drawn from the first 5000 ids, or uniform between -0.5 and 0.5."""

    def sites(self, layout: Layout) -> list[Site]:
        return [layout.embedding()]

    def build(self, site: Site) -> Adapter:
        return Prompt(site, self)

    def count(self, layout: Layout) -> int:
        return self.length * layout.embedding().outputs


class Prompt(SoftPrompt):
    """A prompt P [length, width] of free embeddings."""

    def __init__(self, site: Site, method: PromptTuning):
        super().__init__(site, method.length)
        self.P = nn.Parameter(torch.empty(method.length, site.outputs))
        if method.init == "random":
            nn.init.uniform_(self.P, -0.5, 0.5)
        else:
            self.P.data.copy_(words(site, method.length))

    def rows(self) -> Tensor:
        return self.P


def words(site: Site, count: int) -> Tensor:
    """Draw the embeddings [count, width] of distinct tokens in fp32, as the embedding puts them out.

    The ids are the first 5000, which tokenizers with merges give to the most frequent words; where the vocabulary
    is smaller than `count`, tokens come again.
    """
    choices = torch.randperm(min(FREQUENT, site.inputs))
    ids = choices.repeat(-(-count // len(choices)))[:count]
    device = next(site.module.parameters()).device
    with torch.no_grad():
        return site.module(ids.to(device)).float().to(choices.device)
