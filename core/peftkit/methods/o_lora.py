"""O-LoRA learns a further task in directions that earlier adapters do not read (Wang et al. 2023, arXiv:2310.14152)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from annotated_types import Ge
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.kernels.low_rank import Pair, add_pair
from peftkit.layers.low_rank import LowRank
from peftkit.layout import Site
from peftkit.methods.lora import LoRA
from peftkit.ports.adapter import Adapter, Call


@dataclass(frozen=True, kw_only=True)
class OrthogonalLoRA(LoRA, name="o-lora"):
    """W + sum_i s_i B_i A_i + s B A: the trained pairs named under `adapters:`, frozen, and one for the task at hand.

    The loss gains orthogonality * sum_i |A_i A'|, over the entries as in the official code, where the paper squares
    them; `variant: paper` does. With `shrinkage` it gains that times |A|^2 + |B|^2. The start is the model with
    the earlier adapters; without any the method is LoRA. A merge takes all of them.
    """

    paper: ClassVar[str] = "Wang et al. 2023, arXiv:2310.14152"
    summary: ClassVar[str] = (
        "LoRA beside the frozen adapters of earlier tasks, whose input directions the new one is kept orthogonal to. "
        "Tasks are learnt one after the other and disturb each other little."
    )
    default_learning_rate: ClassVar[float] = 0.018
    by_weight: ClassVar[bool] = False
    plain_pair: ClassVar[bool] = False

    orthogonality: Annotated[float, Ge(0)] = 0.5
    """Weight of the penalty on what the new pair reads of the earlier ones' inputs."""
    shrinkage: Annotated[float, Ge(0)] = 0.0
    """Weight of the penalty on the new pair's size."""
    variant: Literal["official", "paper"] = "official"
    """What is summed: absolute values (official) or squares (paper)."""

    def build(self, site: Site) -> Adapter:
        return BesideOthers(site, self)

    def penalty(self, adapters: Mapping[str, Adapter]) -> Tensor | None:
        terms = []
        for adapter in cast(Mapping[str, BesideOthers], adapters).values():
            for earlier in adapter.earlier:
                overlap = earlier.to(adapter.A) @ adapter.A.T
                terms.append(
                    self.orthogonality * (overlap.square() if self.variant == "paper" else overlap.abs()).sum()
                )
            if self.shrinkage:
                terms.append(self.shrinkage * (adapter.A.square().sum() + adapter.B.square().sum()))
        return torch.stack(terms).sum() if terms else None


class BesideOthers(LowRank):
    """A pair beside those that were trained at the site before."""

    def __init__(self, site: Site, method: OrthogonalLoRA):
        super().__init__(site, method)
        other = next((name for name, child in site.children.items() if not isinstance(child, LowRank)), None)
        if other is not None:
            raise PeftkitError(
                f"{method.name}: the adapter '{other}' is no low-rank pair at {site.id}: name runs of lora or its kin."
            )

    @property
    def earlier(self) -> list[Tensor]:
        """The matrices A [rank, in] of the earlier pairs."""
        return [cast(Any, child).exported()[0] for child in self.site.children.values()]

    def forward(self, call: Call, x: Tensor) -> Tensor:
        for child in self.site.children.values():
            call = partial(child, call)
        return add_pair(call(x), Pair(self.dropped(x), *self.matrices()))

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for child in self.site.children.values():
            weight, bias = cast(Any, child).merge(weight, bias)
        return super().merge(weight, bias)
