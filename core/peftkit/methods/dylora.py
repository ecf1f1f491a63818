"""DyLoRA trains one low-rank pair that can be cut to any smaller rank (Valipour et al. 2022, arXiv:2210.07558)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.kernels.low_rank import Pair
from peftkit.layers.low_rank import LowRank
from peftkit.layout import Layout, Site
from peftkit.methods.lora import LoRA
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class DyLoRA(LoRA, name="dylora"):
    """W + (alpha / b) B[:, :b] A[:b] with b drawn for each step from min_rank to rank, the same at every site.

    A [rank, in] and B [out, rank] start as in LoRA. With `update: last` only row b of A and column b of B take
    gradients, the paper's faster variant. After training, `use_rank` in the options cuts the pair to any rank; all
    rows stay in the saved adapter.
    """

    paper: ClassVar[str] = "Valipour et al. 2022, arXiv:2210.07558"
    summary: ClassVar[str] = (
        "Draws the rank of each training step, so that the first rows of a low-rank pair carry most. The "
        "trained pair works at every rank."
    )
    default_learning_rate: ClassVar[float] = 0.01
    by_weight: ClassVar[bool] = False
    plain_pair: ClassVar[bool] = False

    min_rank: Annotated[int, Ge(1)] = 1
    """Smallest rank that is drawn."""
    update: Literal["all", "last"] = "all"
    """Which rows of the drawn rank take gradients."""
    use_rank: Annotated[int, Ge(1)] | None = None
    """Rank used outside training: in generation, evaluation, merging and export; by default the full one."""

    def sites(self, layout: Layout) -> list[Site]:
        for key, value in (("min_rank", self.min_rank), ("use_rank", self.use_rank)):
            if value is not None and value > self._largest():
                raise PeftkitError(
                    f"{self.name}: {key} is {value}, above the rank {self._largest()}: choose at most it."
                )
        return super().sites(layout)

    def share(self, layout: Layout) -> nn.Module:
        shared = nn.Module()
        shared.register_buffer("width", self._draw())
        return shared

    def build(self, site: Site) -> Adapter:
        return Truncated(site, self)

    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        next(iter(adapters.values())).shared.width.copy_(self._draw())

    def _largest(self) -> int:
        return max(self.rank, *self.rank_pattern.values()) if self.rank_pattern else self.rank

    def _draw(self) -> Tensor:
        return torch.randint(self.min_rank, self._largest() + 1, (1,))


class Truncated(LowRank):
    """A pair A [rank, in], B [out, rank] of which a step uses the first rows and columns."""

    factors: tuple[str, str] | None = None

    def __init__(self, site: Site, method: DyLoRA):
        super().__init__(site, method)
        self.method = method

    def pair(self, x: Tensor) -> Pair | None:
        inside = self.dropped(x)
        if not self.training or self.shared is None:
            return Pair(inside, *self.matrices())
        # Gates instead of slices: the width stays on the device and no step waits for it.
        rank = self.A.shape[0]
        width = self.shared.width.clamp(max=rank)
        order = torch.arange(rank, device=width.device)
        down, up = self.A, self.B
        if self.method.update == "last":
            last = order == width - 1
            down = torch.where(last[:, None], down, down.detach())
            up = torch.where(last, up, up.detach())
        gates = (order < width) * self._factor(rank / width)
        return Pair(inside, down, up * gates, 1.0)

    def matrices(self) -> tuple[Tensor, Tensor, float]:
        """Return A [b, in] and B [out, b] at the rank b used outside training, and 1: the scale is in B."""
        rank = self.A.shape[0]
        width = min(self.method.use_rank or rank, rank)
        return self.A[:width], self.B[:, :width] * self._factor(rank / width), 1.0

    def _factor(self, share: Any) -> Any:
        return self.scale * (share**0.5 if self.method.rank_stabilised else share)
