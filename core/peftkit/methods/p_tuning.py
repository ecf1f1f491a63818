"""P-tuning learns a soft prompt through an encoder that training alone needs (Liu et al. 2021, arXiv:2103.10385)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, cast

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.ports.adapter import Adapter
from peftkit.ports.embedding import SoftPrompt


@dataclass(frozen=True, kw_only=True)
class PTuning(Method, name="p-tuning"):
    """The prompt P = MLP(E) or MLP(BiLSTM(E)) [length, width] stands in front of the text; E [length, width] is free.

    The MLP is Linear(width, hidden), ReLU, Linear(hidden, hidden), ReLU, Linear(hidden, width); behind a two-layer
    bidirectional LSTM of `hidden` each way it is Linear(2 hidden, 2 hidden), ReLU, Linear(2 hidden, width). These are
    the sizes of Hugging Face peft, whose default is the MLP too; the paper and its code use the LSTM. E is drawn from
    N(0, 1). After training only P is kept (`encoder: none`), which is a soft prompt of free embeddings. The paper
    also spreads the prompt over a template; here it stands in front, behind the beginning-of-sequence token. Hugging
    Face peft puts it in front of that token: where a tokenizer sets it, nothing is exported there.
    """

    port: ClassVar[str] = "embedding"
    family: ClassVar[str] = "soft prompt"
    paper: ClassVar[str] = "Liu et al. 2021, arXiv:2103.10385"
    summary: ClassVar[str] = (
        "Learns a soft prompt through a small encoder, which ties its embeddings to each other. The encoder is "
        "dropped after training and the prompt alone is saved."
    )
    default_learning_rate: ClassVar[float] = 5.6e-3
    size: ClassVar[str | None] = "length"
    mergeable: ClassVar[bool] = False

    length: Annotated[int, Ge(1)] = 20
    """Number of prompt embeddings."""
    encoder: Literal["mlp", "lstm", "none"] = "mlp"
    """What P comes from in training; none: P itself is trained."""
    hidden: Annotated[int, Ge(1)] = 128
    """Width inside the encoder."""

    def sites(self, layout: Layout) -> list[Site]:
        return [layout.embedding()]

    def build(self, site: Site) -> Adapter:
        return EncodedPrompt(site, self)

    @property
    def finished(self) -> Method:
        return replace(self, encoder="none")

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        for adapter in adapters.values():
            cast(EncodedPrompt, adapter).collapse()


class EncodedPrompt(SoftPrompt):
    """A prompt P [length, width] = head(lstm(E)), each part where the method has it."""

    undecayed: tuple[str, ...] = ("E",)

    def __init__(self, site: Site, method: PTuning):
        super().__init__(site, method.length)
        width, k = site.outputs, method.hidden
        self.E = nn.Parameter(torch.randn(method.length, width))
        self.lstm = self.head = None
        if method.encoder == "mlp":
            layers = (nn.Linear(width, k), nn.ReLU(), nn.Linear(k, k), nn.ReLU(), nn.Linear(k, width))
            self.head = nn.Sequential(*layers)
        elif method.encoder == "lstm":
            self.lstm = nn.LSTM(width, k, num_layers=2, bidirectional=True)
            self.head = nn.Sequential(nn.Linear(2 * k, 2 * k), nn.ReLU(), nn.Linear(2 * k, width))

    def rows(self) -> Tensor:
        # The encoder is tiny and its prompt is compared with none in lower precision: it stays in fp32.
        with torch.autocast(self.E.device.type, enabled=False):
            y = self.E if self.lstm is None else self.lstm(self.E)[0]
            return y if self.head is None else self.head(y)

    def collapse(self) -> None:
        """Put P itself in the place of E and drop the encoder."""
        with torch.no_grad():
            self.E.copy_(self.rows())
        self.lstm = self.head = None
