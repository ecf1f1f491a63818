"""Serial adapters pass the output of each sublayer through a bottleneck (Houlsby et al. 2019, arXiv:1902.00751)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from torch import nn

from peftkit.layers.bottleneck import Activation, Bottleneck
from peftkit.layout import Layout, Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter


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
