"""Serial adapters pass the output of each sublayer through a bottleneck (Houlsby et al. 2019, arXiv:1902.00751)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.layout import Layout, Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import linear

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh}
Activation = Literal["gelu", "relu", "silu", "tanh"]


@dataclass(frozen=True, kw_only=True)
class SerialAdapter(Targeted, name="serial-adapter"):
    """The sublayer's output o becomes o + U act(D o + b) + c, before the residual is added.

    D [bottleneck, out], b [bottleneck], U [out, bottleneck], c [out]; it sits on the linear maps that end the
    attention and the feed-forward block, which is before any norm behind them. `init: zero` (the default) draws D from
    the Kaiming uniform distribution (a = sqrt 5) and sets the rest to zero, so that the start is exactly the base;
    `init: houlsby` is the published near-identity: D and U truncated normal with standard deviation 0.01, biases zero.
    The paper trains the layer norms too (`norms: true`) and the head of its classifiers.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751"
    summary: ClassVar[str] = (
        "Passes the output of attention and feed-forward blocks through a small trainable bottleneck. The bottleneck "
        "is not linear and stays beside the model."
    )
    default_learning_rate: ClassVar[float] = 0.018
    size: ClassVar[str | None] = "bottleneck"
    mergeable: ClassVar[bool] = False

    bottleneck: Annotated[int, Ge(1)] = 64
    """Inner size of the adapter; the paper uses 8 to 256."""
    activation: Activation = "gelu"
    """Function between D and U."""
    targets: Targets = ("o", "down")
    """The linear maps behind which an adapter stands: roles, groups or module-name patterns."""
    init: Literal["zero", "houlsby"] = "zero"
    """How the bottleneck starts."""
    norms: bool = False
    """Train the layer norms of the model too."""

    def build(self, site: Site) -> Adapter:
        bottleneck = Bottleneck(site, self.bottleneck, self.activation)
        if self.init == "houlsby":
            for matrix in (bottleneck.D, bottleneck.U):
                nn.init.trunc_normal_(matrix, std=0.01, a=-0.02, b=0.02)
        return bottleneck

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        return self.norms and name.rpartition(".")[0] in layout.norms()


class Bottleneck(Adapter):
    """U act(D x + b) + c with D [r, width], U [width, r], in fp32; added to the output that it reads."""

    def __init__(self, site: Site, size: int, activation: str):
        super().__init__(site)
        self.act = ACTIVATIONS[activation]
        self.D = nn.Parameter(torch.empty(size, site.outputs))
        self.b = nn.Parameter(torch.zeros(size))
        self.U = nn.Parameter(torch.zeros(site.outputs, size))
        self.c = nn.Parameter(torch.zeros(site.outputs))
        nn.init.kaiming_uniform_(self.D, a=5**0.5)

    def inner(self, x: Tensor) -> Tensor:
        """Return what is added for hidden states x [..., width]."""
        return linear(self.act(linear(x, self.D, self.b)), self.U, self.c)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        return y + self.inner(y)
