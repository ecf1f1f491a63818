"""The multi-head parallel adapter has a bottleneck for each head of attention (He et al. 2021, arXiv:2110.04366)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.bottleneck import ACTIVATIONS, Activation
from peftkit.layers.heads import query_heads, value_size
from peftkit.layout import Layout, Site, parse_layers
from peftkit.method import Method
from peftkit.ports.adapter import Adapter
from peftkit.ports.attention import Attend, AttentionAdapter
from peftkit.ports.linear import linear


@dataclass(frozen=True, kw_only=True)
class MultiheadParallelAdapter(Method, name="multihead-parallel-adapter"):
    """The output y_h of head h becomes y_h + s (U_h ReLU(D_h x + b_h) + c_h), before the output projection.

    x [width] is what attention reads, D_h [bottleneck, width], b_h [bottleneck], U_h [size, bottleneck], c_h [size] and
    y_h [size]. D is drawn from the Kaiming uniform distribution (a = sqrt 5), the rest starts at zero, so that the
    start is the base. A bottleneck of m does for each head what a prefix of m positions can, without its softmax.
    """

    port: ClassVar[str] = "attention"
    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "He et al. 2021, arXiv:2110.04366"
    summary: ClassVar[str] = (
        "Adds the output of a small trainable bottleneck of its own to each head of attention. It is the parallel "
        "adapter in the place of a prefix."
    )
    default_learning_rate: ClassVar[float] = 0.032
    size: ClassVar[str | None] = "bottleneck"
    mergeable: ClassVar[bool] = False

    bottleneck: Annotated[int, Ge(1)] = 8
    """Inner size of the adapter of each head; the paper has 30."""
    activation: Activation = "relu"
    """Function between D and U."""
    scale: Annotated[float, Gt(0)] = 1.0
    """Factor s of what the adapter adds."""
    layers: tuple[int, ...] | str | None = None
    """Layers with adapters, such as 0-3,8; all by default."""

    def sites(self, layout: Layout) -> list[Site]:
        sites = layout.attention(parse_layers(self.layers))
        if any(site.heads is None or site.heads.own or "o" not in site.parts for site in sites):
            raise PeftkitError(
                f"{self.name}: this {layout.kind} model has no attention that an adapter can enter between its heads "
                "and their projection: choose parallel-adapter with beside: attention."
            )
        return sites

    def build(self, site: Site) -> Adapter:
        return HeadBottlenecks(site, self)


class HeadBottlenecks(AttentionAdapter):
    """D [heads, r, width], b [heads, r], U [heads, size, r], c [heads, size] of one attention."""

    undecayed: tuple[str, ...] = ("b", "c")

    def __init__(self, site: Site, method: MultiheadParallelAdapter):
        super().__init__(site)
        self.act, self.scale = ACTIVATIONS[method.activation], method.scale
        heads, size = query_heads(site), method.bottleneck
        outputs = value_size(site)
        # The bound of a = sqrt 5: one over the square root of the inputs.
        self.D = nn.Parameter(torch.empty(heads, size, site.inputs).uniform_(-1, 1) * site.inputs**-0.5)
        self.b, self.c = nn.Parameter(torch.zeros(heads, size)), nn.Parameter(torch.zeros(heads, outputs))
        self.U = nn.Parameter(torch.zeros(heads, outputs, size))

    def forward(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        y = attend(q, k, v, mask)
        inner = self.act(linear(self.input, self.D.flatten(0, 1), self.b.flatten())).unflatten(-1, self.b.shape)
        added = torch.einsum("...hr,hsr->...hs", inner, self.U.to(inner.dtype)) + self.c.to(inner.dtype)
        return y + (added * self.scale).to(y.dtype)
