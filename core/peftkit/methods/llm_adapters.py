"""The placements that LLM-Adapters found best for each kind of adapter (Hu et al. 2023, arXiv:2304.01933)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.lora import LoRA
from peftkit.methods.parallel_adapter import ParallelAdapter
from peftkit.methods.pfeiffer_adapter import PfeifferAdapter
from peftkit.methods.prefix_tuning import PrefixTuning
from peftkit.methods.somewhere import somewhere


@dataclass(frozen=True, kw_only=True)
class LLMAdapters(Method, name="llm-adapters"):
    """`series`: a bottleneck behind each feed-forward block; `parallel`: one beside it; `lora`: pairs at the linear
    maps of attention and of the feed-forward block; `prefix`: keys and values in front of those of the text.

    They are `pfeiffer-adapter`, `parallel-adapter`, `lora` and `prefix-tuning` without an MLP, with their shapes and
    starts, in the sizes of the paper. The official code puts its bottlenecks at single linear maps inside the block
    where the paper names the block; here they stand at the block. The paper trains at 3e-4, 16 examples a step, for 3
    epochs, on texts of at most 256 tokens: `recipes/llm-adapters` has that.
    """

    port: ClassVar[str] = "that of the placement"
    family: ClassVar[str] = "combination"
    paper: ClassVar[str] = "Hu et al. 2023, arXiv:2304.01933"
    summary: ClassVar[str] = (
        "Puts series or parallel adapters, low-rank pairs or a prefix where a comparison on large models found them "
        "best. Sizes are those of the comparison."
    )
    default_learning_rate: ClassVar[float] = 0.018

    adapter: Literal["series", "parallel", "lora", "prefix"] = "parallel"
    """The kind of adapter, at its best place."""
    bottleneck: Annotated[int, Ge(1)] = 256
    """Inner size of series and parallel adapters."""
    rank: Annotated[int, Ge(1)] = 32
    """Inner size of low-rank pairs, whose scale is 2."""
    prefix_length: Annotated[int, Ge(1)] = 10
    """Number of prefix positions."""

    def __post_init__(self) -> None:
        # Its own to say: that depends on what it is made of.
        self.__dict__["mergeable"] = all(part.mergeable for part in self.parts())

    def parts(self) -> tuple[Method, ...]:
        rate: dict[str, Any] = {"learning_rate": self.learning_rate}
        placed: dict[str, Method] = {
            "series": PfeifferAdapter(bottleneck=self.bottleneck, **rate),
            "parallel": ParallelAdapter(bottleneck=self.bottleneck, **rate),
            "lora": LoRA(rank=self.rank, alpha=2.0 * self.rank, targets="linear", **rate),
            "prefix": PrefixTuning(length=self.prefix_length, projection=None, **rate),
        }
        return (somewhere(placed[self.adapter], _all, self.name, self.default_learning_rate),)


def _all(layout: Layout) -> range:
    return range(len(layout.blocks))
