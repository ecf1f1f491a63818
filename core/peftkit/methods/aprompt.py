"""APrompt learns prompts at the input and in the queries, keys and values of every layer (Wang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt
from torch import nn

from peftkit.layers.prefix import Prefix
from peftkit.layers.prompt_places import AddedRows, Places
from peftkit.layout import Layout, Site
from peftkit.methods.prompt_tuning import Prompt, PromptTuning
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class APrompt(PromptTuning, name="aprompt"):
    """Soft rows P [length, width] in front of the text, and in each layer queries P_q, keys [P_k; K], values [P_v; V].

    P is that of `prompt-tuning`, P_k and P_v [keys, groups * size] those of `p-tuning-v2`. The paper sets P_q in front
    of the queries; what it attends to would be dropped in a decoder, where nobody reads it. Here P_q [queries, heads *
    size] is added to the queries of the first rows of P in all layers but the last, so that the next one reads what
    comes of them. P_q, P_k and P_v start from N(0, deviation^2); without P_q this is `p-tuning-v2` and `prompt-tuning`.
    """

    port: ClassVar[str] = "embedding + attention + linear"
    paper: ClassVar[str] = "Wang et al. 2023, EMNLP"
    summary: ClassVar[str] = (
        "Learns a soft prompt at the input together with prompts inside the attention of every layer. Those have "
        "queries of their own beside keys and values."
    )
    default_learning_rate: ClassVar[float] = 0.56

    length: Annotated[int, Ge(1)] = 10
    """Number of prompt embeddings at the input."""
    queries: Annotated[int, Ge(0)] = 10
    """Number of the prompt's first rows whose queries are learnt in each layer; all of them where it has no more."""
    keys: Annotated[int, Ge(0)] = 10
    """Number of learnt keys and values of each layer."""
    deviation: Annotated[float, Gt(0)] = 0.02
    """Standard deviation of the normal distribution from which queries, keys and values start."""

    def share(self, layout: Layout) -> nn.Module:
        return Places()

    def sites(self, layout: Layout) -> list[Site]:
        attended = layout.attention() if self.queries or self.keys else []
        asking = [site.parts["q"] for site in attended if "q" in site.parts]
        # What the rows of the last layer come to is read by nobody.
        asking = [site for site in asking if site.layer != attended[-1].layer]
        prompt = super().sites(layout)
        return [*prompt, *(asking if self.queries else []), *(attended if self.keys else [])]

    def notices(self, layout: Layout) -> list[str]:
        maps = any("q" in site.parts for site in layout.attention()) if self.queries else True
        return [] if maps else [f"{self.name}: this {layout.kind} model has no map of queries, and gets none"]

    def build(self, site: Site) -> Adapter:
        if site.role == "embedding":
            return Prompt(site, self)
        if site.role == "q":
            return AddedRows(site, min(self.queries, self.length), self.deviation)
        return Prefix(site, self.keys, self.deviation)
