"""Parallel adapters run a bottleneck beside a whole sublayer (He et al. 2021, arXiv:2110.04366)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from peftkit.layers.bottleneck import Activation, Bottleneck
from peftkit.layout import Layout, Site, parse_layers
from peftkit.method import Method
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class Beside(Method):
    """A method of adapters that run beside whole sublayers: which sublayers these are."""

    port: ClassVar[str] = "hidden"
    mergeable: ClassVar[bool] = False

    beside: Literal["mlp", "attention"] = "mlp"
    """The sublayer beside which an adapter runs."""
    layers: tuple[int, ...] | str | None = None
    """Layers with adapters, such as 0-3,8; all by default."""

    def sites(self, layout: Layout) -> list[Site]:
        return layout.hidden(self._place(layout), parse_layers(self.layers))

    def notices(self, layout: Layout) -> list[str]:
        if self._place(layout) == self.beside:
            return []
        return [f"{self.name}: {layout.kind} models have no feed-forward parts: the mixers stand for them"]

    def _place(self, layout: Layout) -> str:
        parts = {part.kind for part in layout.parts}
        bare = self.beside == type(self).beside and parts == {"attention"} and not layout.roles().get("down")
        return "attention" if bare else self.beside

    def options(self) -> dict[str, Any]:
        # What is done comes before where, as in methods of linear maps.
        options = super().options()
        where = {key: options.pop(key) for key in ("beside", "layers")}
        return {**options, **where}


@dataclass(frozen=True, kw_only=True)
class ParallelAdapter(Beside, name="parallel-adapter"):
    """The sublayer f gives f(x) + s (U act(D x + b) + c); x [..., width] is what it reads, after its norm.

    D [bottleneck, width] is drawn from the Kaiming uniform distribution (a = sqrt 5); b, U [width, bottleneck] and c
    start at zero, so that the start is the base. The scale s is 1. Models with a norm in front of each sublayer give x
    after that norm.
    """

    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "He et al. 2021, arXiv:2110.04366"
    summary: ClassVar[str] = (
        "Runs a small trainable bottleneck beside each feed-forward or attention block, on the same input. The "
        "bottleneck is not linear and stays beside the model."
    )
    default_learning_rate: ClassVar[float] = 0.018
    size: ClassVar[str | None] = "bottleneck"

    bottleneck: Annotated[int, Ge(1)] = 64
    """Inner size of the adapter; the paper's best has 512."""
    activation: Activation = "relu"
    """Function between D and U."""
    scale: Annotated[float, Gt(0)] = 1.0
    """Factor s of what the adapter adds."""

    def build(self, site: Site) -> Adapter:
        return Bottleneck(site, self.bottleneck, self.activation, beside=True, scale=self.scale)
