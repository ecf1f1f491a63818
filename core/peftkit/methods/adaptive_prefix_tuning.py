"""Adaptive prefix tuning weighs a prefix by what each layer makes of the example (Zhang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from peftkit.layers.prefix import Prefix, split
from peftkit.layout import Site
from peftkit.methods.p_tuning_v2 import PTuningV2
from peftkit.ports.adapter import Adapter
from peftkit.ports.attention import Attend, opened


@dataclass(frozen=True, kw_only=True)
class AdaptivePrefixTuning(PTuningV2, name="adaptive-prefix-tuning"):
    """Attention sees [l a P_k; K] and [l a P_v; V]: a = sigmoid(W h) weighs each of the `length` positions, l a layer.

    h [width] is what the attention reads at the last token of the prompt, so that a stays as it is while an answer is
    generated; the paper takes the state of BERT's first token in the layer before. Where there is no prompt, it is the
    first token of the text. P_k and P_v are those of `p-tuning-v2`, W [length, width] starts from N(0, 0.02^2) and l
    [1] at one: with W zero and l two this is that method. Examples are padded and share nothing.
    """

    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2305.15212"
    summary: ClassVar[str] = (
        "Learns keys and values in front of those of the text, whose positions each layer weighs anew for every "
        "example. The weights are read off the end of its prompt."
    )
    default_learning_rate: ClassVar[float] = 0.18
    rate_falls_with_width: ClassVar[bool] = True
    by_row: ClassVar[bool] = True

    def build(self, site: Site) -> Adapter:
        return AdaptivePrefix(site, self.length, self.deviation, self.shift)


class AdaptivePrefix(Prefix):
    """A prefix, the map W [length, width] to the weights of its positions, and the layer's factor l [1]."""

    reads: ClassVar[Literal["", "tokens", "prompt"]] = "prompt"

    def __init__(self, site: Site, length: int, deviation: float, shift: bool):
        super().__init__(site, length, deviation, shift)
        self.W = nn.Parameter(torch.randn(length, site.inputs) * 0.02)
        self.l = nn.Parameter(torch.ones(1))

    def weights(self) -> Tensor:
        """Return the weights [B, length] of the positions."""
        state = self.tokens.last(self.input)
        return torch.sigmoid(state.to(self.W.dtype) @ self.W.T)

    def forward(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        weights = (self.l * self.once(self.weights))[:, None, :, None]
        parts = self.prefix()
        self.tell(torch.cat(parts, 1))
        keys, values = (split(part, like) * weights.to(like.dtype) for part, like in zip(parts, (k, v), strict=True))
        seen = opened(mask, keys.shape[2])
        return attend(q, torch.cat([keys, k], 2), torch.cat([values, v], 2), torch.cat([seen, mask], 3))
