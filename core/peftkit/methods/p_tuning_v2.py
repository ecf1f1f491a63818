"""P-tuning v2 learns keys and values that every layer attends to as well (Liu et al. 2021, arXiv:2110.07602)."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt

from peftkit.errors import PeftkitError
from peftkit.layers.prefix import Prefix
from peftkit.layout import Layout, Site, parse_layers
from peftkit.method import Method
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class PTuningV2(Method, name="p-tuning-v2"):
    """Attention sees keys [P_k; K] and values [P_v; V] in every layer; P_k and P_v [length, groups * size] are free.

    With grouped-query attention the prefix has the groups of the model's keys. The keys are learnt as they stand
    after rotary positions, every query may look at all of them, and the positions of the text do not move. Official
    code and Hugging Face peft go through the cache and start the text at position `length` instead, where the same
    keys and values give other logits: `shift: true` is that, and such adapters are exchanged. The official code draws
    the start from N(0, 1); here the standard deviation is an option, small by default, because large values drown
    what the layer attends to. Soft caps hold for the scores of the prefix too and sinks stand beside it; windows,
    chosen keys and biases by position are about the text alone. Latent attention has the prefix at its up-projected
    keys and values. A model that attends in code of its own takes it through its cache, in front of the text of each
    row; where the code itself has windows or a bias in even steps there, they count on to the prefix. Layers without
    attention have none.
    """

    port: ClassVar[str] = "attention"
    family: ClassVar[str] = "soft prompt"
    paper: ClassVar[str] = "Liu et al. 2021, arXiv:2110.07602"
    summary: ClassVar[str] = (
        "Learns keys and values that stand in front of those of the text in every layer. It is prefix tuning with the "
        "prefix itself as parameters."
    )
    default_learning_rate: ClassVar[float] = 1.0
    rate_falls_with_width: ClassVar[bool] = False
    size: ClassVar[str | None] = "length"
    mergeable: ClassVar[bool] = False

    length: Annotated[int, Ge(1)] = 20
    """Number of prefix positions; 20 to 40 for simple tasks, about 100 for hard ones."""
    layers: tuple[int, ...] | str | None = None
    """Layers with a prefix, such as 0-3,8; all by default."""
    deviation: Annotated[float, Gt(0)] = 0.02
    """Standard deviation of the normal distribution from which free keys and values start."""

    shift: bool = False
    """Whether the text begins at position `length`, as in the official code and Hugging Face peft, and not at 0."""

    def sites(self, layout: Layout) -> list[Site]:
        if self.shift and "position_ids" not in inspect.signature(layout.body().forward).parameters:
            raise PeftkitError(
                f"{self.name}: shift is true, and this {layout.kind} model takes no positions: set shift to false."
            )
        return layout.attention(parse_layers(self.layers))

    def build(self, site: Site) -> Adapter:
        return Prefix(site, self.length, self.deviation, self.shift)
