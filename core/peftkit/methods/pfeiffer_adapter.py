"""Pfeiffer's adapter is the serial one behind the feed-forward block alone (Pfeiffer et al. 2020, arXiv:2005.00247)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from peftkit.layers.bottleneck import Activation
from peftkit.layout import Layout, Standing, parse_layers
from peftkit.method import Targets
from peftkit.methods.serial_adapter import SerialAdapter


@dataclass(frozen=True, kw_only=True)
class PfeifferAdapter(SerialAdapter, name="pfeiffer-adapter"):
    """The output o of the feed-forward block becomes o + U ReLU(D o + b) + c; one adapter in each layer.

    Shapes and starts are those of `serial-adapter`. The paper found this placement best among those that it searched,
    with all layer norms frozen; the fusion of several adapters is no part of this method. With `reads: stream` D reads
    r + o, the residual stream behind the layer, as the official code does in decoders (`seq_bn` of AdapterHub's
    adapters); what is added is the same.
    """

    paper: ClassVar[str] = "Pfeiffer et al. 2020, arXiv:2005.00247"
    summary: ClassVar[str] = (
        "Passes the output of each feed-forward block through a small trainable bottleneck. It is the serial adapter "
        "with half the modules."
    )
    default_learning_rate: ClassVar[float] = 0.032

    activation: Activation = "relu"
    """Function between D and U."""
    targets: Targets = ("down",)
    """The linear maps behind which an adapter stands: roles, groups or module-name patterns."""
    reads: Literal["sublayer", "stream"] = "sublayer"
    """What D reads: the output of those maps, or the output of the whole layer, whatever the targets are."""

    def standing(self, layout: Layout) -> Standing:
        if self.reads == "sublayer":
            return super().standing(layout)
        return Standing(layout.hidden("block", parse_layers(self.layers)))
