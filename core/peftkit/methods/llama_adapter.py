"""LLaMA-Adapter attends to a prompt apart, behind a gate that starts at zero (Zhang et al. 2023, arXiv:2303.16199)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.prefix import split
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.ports.adapter import Adapter
from peftkit.ports.attention import Attend, AttentionAdapter, opened
from peftkit.ports.linear import linear
from peftkit.quantization.weight import dense

KEY_NORMS = ("k_norm", "k_layernorm")
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")


@dataclass(frozen=True, kw_only=True)
class LlamaAdapter(Method, name="llama-adapter"):
    """Attention gives Attn(q, K, V) + g Attn(q, W_k P, W_v P): a softmax of its own over a prompt P [length, width].

    P goes through the layer's frozen key and value maps and, where the layer has one, its norm of keys, without rotary
    positions. `variant: paper` (the default) has one factor g for each layer, as Hugging Face peft; `variant: official`
    is tanh(g) with one g for each head, as the later official code. g starts at zero, so that the start is the base; P
    is drawn from N(0, 1).
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
        if _heads(layout.config) is None:
            raise PeftkitError(f"{self.name}: the configuration of this {layout.kind} model states no heads.")
        count = len(layout.blocks)
        sites = layout.attention(range(max(0, count - self.top), count))
        for site in sites if self.variant == "official" else ():
            if site.heads is not None and site.heads.own and site.heads.groups != _heads(site.module):
                raise PeftkitError(
                    f"{self.name}: the gates of single heads cannot enter the attention of this {layout.kind} model, "
                    "whose heads share keys and values: choose variant: paper."
                )
        return sites

    def build(self, site: Site) -> Adapter:
        return GatedPrompt(site, self)


class GatedPrompt(AttentionAdapter):
    """A prompt P [length, width] of one layer and its gate g, [1] or [heads]."""

    def __init__(self, site: Site, method: LlamaAdapter):
        super().__init__(site)
        self.bounded = method.variant == "official"
        self.P = nn.Parameter(torch.randn(method.length, site.inputs))
        heads = _heads(cast(Any, site.module)) or 1
        self.g = nn.Parameter(torch.zeros(heads if self.bounded else 1))

    def forward(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        prompt = self.P.to(v.dtype)
        keys, values = self._of(prompt, k, v)
        gate = (torch.tanh(self.g) if self.bounded else self.g).to(v.dtype).unsqueeze(-1)
        seen = opened(mask, len(prompt))
        if q.shape[1]:
            return attend(q, k, v, mask) + gate * attend(q, keys, values, seen)
        # What the module returns is affine in the attention: the sum of two is that of their outputs less that of none.
        hidden = mask.new_full(mask.shape, False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)
        k, seen = torch.cat([keys, k], 2), torch.cat([seen, hidden], 3)
        weighed, none = (torch.cat([x, v], 2) for x in (gate.unsqueeze(-1) * values, 0 * values))
        return attend(q, k[:, :, len(prompt) :], v, mask) + attend(q, k, weighed, seen) - attend(q, k, none, seen)

    def _of(self, prompt: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values that the frozen attention makes of the prompt, without rotary positions."""
        parts = self.site.parts
        if {"k", "v"} <= set(parts):
            return self._normed(_map(prompt, parts["k"]), k), split(_map(prompt, parts["v"]), v)
        keys, values = self.made(prompt)
        return keys.expand(len(k), -1, -1, -1), values.expand(len(v), -1, -1, -1)

    def _normed(self, keys: Tensor, like: Tensor) -> Tensor:
        """Split keys [length, groups * size] into heads, through the frozen norm of keys where the layer has one."""
        norm = next((own for name in KEY_NORMS if (own := getattr(self.site.module, name, None)) is not None), None)
        if norm is None:
            return split(keys, like)
        per_head = norm.weight.numel() == like.shape[3]
        return norm(split(keys, like)) if per_head else split(norm(keys), like)


def _map(x: Tensor, site: Site) -> Tensor:
    """Apply the frozen linear map of a site to `x [length, in]`, leaving out adapters that sit on it."""
    weight, bias = dense(site.module), getattr(site.module, "bias", None)
    if site.rows is not None:
        weight = site.rows.take(weight.T).T
        bias = None if bias is None else site.rows.take(bias)
    return linear(x, weight, bias)


def _heads(owner: Any) -> int | None:
    """Return how many heads of queries an attention has, or a configuration states."""
    text = owner.get_text_config() if hasattr(owner, "get_text_config") else owner
    own = next((getattr(text, name) for name in HEADS if isinstance(getattr(text, name, None), int)), None)
    return own if own is not None or not hasattr(text, "config") else _heads(text.config)
