"""Prefix propagation adds learnt states to the prefix of each layer, which then is computed on (Li et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt
from torch import nn

from peftkit.layers.prefix import Prefix
from peftkit.layers.prompt_places import AddedRows, Places
from peftkit.layout import Layout, Site
from peftkit.methods.prompt_tuning import Prompt, PromptTuning
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class PrefixPropagation(PromptTuning, name="prefix-propagation"):
    """Soft rows P_0 stand in front of the text, and each later layer l adds P_l to their states: all [length, width].

    The rows go through the frozen maps of queries, keys and values, so that one matrix a layer does what prefix tuning
    has two for. P_0 starts as in `prompt-tuning`, the others from N(0, deviation^2); with those at zero it is that
    method. `variant: combine` halves the rows and has as many keys and values of `p-tuning-v2` in every layer.
    """

    port: ClassVar[str] = "embedding + hidden"
    paper: ClassVar[str] = "Li et al. 2023, arXiv:2305.12086"
    summary: ClassVar[str] = (
        "Learns a soft prompt, and in each further layer what is added to its states there. It trains half of what "
        "prefix tuning does."
    )
    default_learning_rate: ClassVar[float] = 0.32

    length: Annotated[int, Ge(1)] = 10
    """Number of prompt positions; with `combine` those of both halves together."""
    variant: Literal["only", "combine"] = "only"
    """Propagated rows alone, or half of them and half keys and values."""
    deviation: Annotated[float, Gt(0)] = 0.02
    """Standard deviation of the normal distribution from which all but P_0 start."""

    @property
    def halves(self) -> tuple[int, int]:
        """The number of propagated rows, and of keys and values."""
        return (self.length, 0) if self.variant == "only" else (self.length - self.length // 2, self.length // 2)

    def share(self, layout: Layout) -> nn.Module:
        return Places()

    def sites(self, layout: Layout) -> list[Site]:
        # What a layer reads is what the one below it gives.
        below = range(len(layout.blocks) - 1)
        blocks = layout.hidden("block", below) if below else []
        return [*super().sites(layout), *blocks, *(layout.attention() if self.halves[1] else [])]

    def build(self, site: Site) -> Adapter:
        rows, keys = self.halves
        if site.role == "embedding":
            return Prompt(site, self, rows)
        if site.role == "block":
            return AddedRows(site, rows, self.deviation)
        return Prefix(site, keys, self.deviation)
