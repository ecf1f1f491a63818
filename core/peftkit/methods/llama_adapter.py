"""LLaMA-Adapter attends to a prompt apart, behind a gate that starts at zero (Zhang et al. 2023, arXiv:2303.16199)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.heads import query_heads
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.ports.adapter import Adapter
from peftkit.ports.attention import Attend, AttentionAdapter, opened, shut


@dataclass(frozen=True, kw_only=True)
class LlamaAdapter(Method, name="llama-adapter"):
    """Attention gives Attn(q, K, V) + g Attn(q, W_k P, W_v P): a softmax of its own over a prompt P [length, width].

    P goes through the layer's own code for keys and values (its maps, norms and biases) at position zero, where rotary
    positions turn nothing; a layer that attends to the keys of another has no such code and gets no prompt. `variant:
    paper` (the default) has one factor g for each layer, as Hugging Face peft; `variant: official` is tanh(g) with one
    g for each head, as the later official code. g starts at zero, so that the start is the base; P is drawn from
    N(0, 1).
    """

    port: ClassVar[str] = "attention"
    family: ClassVar[str] = "soft prompt"
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.16199"
    summary: ClassVar[str] = (
        "Lets the topmost layers attend to a learnt prompt in a softmax of its own. A gate that starts at zero "
        "adds the result, so that training starts from the base model."
    )
    default_learning_rate: ClassVar[float] = 0.32
    rate_falls_with_width: ClassVar[bool] = False
    size: ClassVar[str | None] = "length"
    mergeable: ClassVar[bool] = False

    length: Annotated[int, Ge(1)] = 10
    """Number of prompt positions in each layer."""
    top: Annotated[int, Ge(1)] = 30
    """Number of topmost layers with a prompt; all where the model has fewer."""
    variant: Literal["paper", "official"] = "paper"
    """One plain gate for each layer, or one through tanh for each head."""

    def sites(self, layout: Layout) -> list[Site]:
        count = len(layout.blocks)
        given = layout.attention(range(max(0, count - self.top), count))
        sites = [site for site in given if site.heads is not None and not site.heads.shared]
        for site in sites if self.variant == "official" else ():
            if site.heads is not None and site.heads.own and site.heads.groups != query_heads(site):
                raise PeftkitError(
                    f"{self.name}: the gates of single heads cannot enter the attention of this {layout.kind} model, "
                    "whose heads share keys and values: choose variant: paper."
                )
        return sites

    def build(self, site: Site) -> Adapter:
        return GatedPrompt(site, self)


class GatedPrompt(AttentionAdapter):
    """A prompt P [length, width] of one layer and its gate g, [1] or [heads]."""

    undecayed: tuple[str, ...] = ("P",)

    def __init__(self, site: Site, method: LlamaAdapter):
        super().__init__(site)
        self.bounded, self.row_size = method.variant == "official", site.inputs
        self.P = nn.Parameter(torch.randn(method.length, site.inputs))
        heads = query_heads(site)
        self.g = nn.Parameter(torch.zeros(heads if self.bounded else 1))

    def forward(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        prompt = self.tell(self.P).to(v.dtype)
        keys, values = (x.expand(len(v), -1, -1, -1) for x in self.made(prompt))
        gate = (torch.tanh(self.g) if self.bounded else self.g).to(v.dtype).unsqueeze(-1)
        seen = opened(mask, len(prompt))
        if q.shape[1]:
            return attend(q, k, v, mask) + gate * attend(q, keys, values, seen)
        # What the module returns is affine in its attention, and the output of none is in both.
        k, seen = torch.cat([keys, k], 2), torch.cat([seen, torch.full_like(mask, shut(mask))], 3)
        weighed, none = (torch.cat([x, v], 2) for x in (gate.unsqueeze(-1) * values, 0 * values))
        return attend(q, k[:, :, len(prompt) :], v, mask) + attend(q, k, weighed, seen) - attend(q, k, none, seen)
