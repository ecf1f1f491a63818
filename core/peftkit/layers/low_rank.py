"""A low-rank pair beside a frozen linear map, which may start as a part of the frozen weight that keeps the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.kernels.low_rank import Pair
from peftkit.layout import Site
from peftkit.ports.linear import Delta


class PairOptions(Protocol):
    """What a method says of its pairs."""

    @property
    def dropout(self) -> float:
        """The probability of dropping an element of what is multiplied, in training."""
        ...

    def rank_at(self, site: Site) -> int:
        """Return the rank at a site."""
        ...

    def scale_at(self, site: Site) -> float:
        """Return the scale s at a site."""
        ...

    def initialise(self, adapter: LowRank) -> None:
        """Give A and B their start."""
        ...


class LowRank(Delta):
    """W + s B A with A [rank, in] and B [out, rank] in fp32; once `split`, W is W - B0 A0, and s B A starts as B0 A0.

    A0 [rank, in] and B0 [out, rank], the scale in B0, are saved beside A and B: loading factorises nothing again. A
    start that answers what packing lost (`answers`) has a third pair: the packed weight is that of W - B1 A1.
    """

    batched: ClassVar[bool] = True
    factors: tuple[str, str] | None = ("A", "B")
    A0: Tensor
    B0: Tensor
    A1: Tensor
    B1: Tensor
    answers: bool = False
    factorise: Callable[[Any, Tensor], tuple[Tensor, ...]] | None = None

    def __init__(self, site: Site, method: PairOptions):
        super().__init__(site)
        rank = method.rank_at(site)
        self.scale, self.dropout = method.scale_at(site), method.dropout
        self.A = nn.Parameter(torch.empty(rank, site.inputs))
        self.B = nn.Parameter(torch.empty(site.outputs, rank))
        method.initialise(self)

    def matrices(self) -> tuple[Tensor, Tensor, float]:
        """Return the A, B and s of s B A as it is outside training; what is multiplied in between goes into B."""
        return self.A, self.B, self.scale

    def pair(self, x: Tensor) -> Pair | None:
        return Pair(self.dropped(x), *self.matrices())

    def dropped(self, x: Tensor) -> Tensor:
        """Return x, some of it dropped in training."""
        return F.dropout(x, self.dropout, True) if self.dropout and self.training else x

    def delta(self, weight: Tensor) -> Tensor:
        down, up, scale = self.matrices()
        return (up @ down) * scale

    def split(self, factorise: Callable[[Any, Tensor], tuple[Tensor, ...]], answers: bool = False) -> None:
        """Have `start` take the pair (A, B) = `factorise(self, W)` out of the frozen weight; of four, (A1, B1) too."""
        self.factorise, self.answers = factorise, answers
        for key in "AB":
            value: nn.Parameter = getattr(self, key)
            nn.init.zeros_(value)
            for number in "01" if answers else "0":
                self.register_buffer(f"{key}{number}", torch.zeros_like(value))

    @torch.no_grad()
    def start(self) -> None:
        if self.factorise is None:
            return
        weight = self.original().detach().float()
        if not weight.is_meta and not bool(torch.isfinite(weight).all()):
            raise PeftkitError(f"the weight of {self.site.id} holds NaN or infinity and cannot be factorised.")
        down, up, *taken = self.factorise(self, weight)
        self.A.copy_(down)
        self.B.copy_(up)
        self.A0.copy_(self.A)
        self.B0.copy_(self.B * self.scale)
        if self.answers:
            self.A1.copy_(taken[0])
            self.B1.copy_(taken[1])

    @torch.no_grad()
    def begin(self, down: Tensor, up: Tensor, *taken: Tensor) -> None:
        """Start from another pair A [rank, in], B [out, rank], once it stands; a split weight gives way to it.

        What is packed anew is the weight before packing less the pair `taken`, where the start answers that.
        """
        self.A.copy_(down)
        self.B.copy_(up)
        if self.factorise is not None:
            self.A0.copy_(self.A)
            self.B0.copy_(self.B * self.scale)
            if self.answers:
                self.A1.copy_(taken[0])
                self.B1.copy_(taken[1])
            self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        if self.factorise is None:
            return
        down, up = (self.A1, self.B1) if self.answers and not self.exact else (self.A0, self.B0)
        self.put(self.original().float() - up @ down)

    def exported(self) -> tuple[Tensor, Tensor]:
        """Return the plain pair A [rank, in], B [out, rank] that does the same to the base at a scale of one.

        Its rank is twice that of a split pair, whose start is subtracted.
        """
        down, up, scale = self.matrices()
        down, up = down.detach(), up.detach() * scale
        if self.factorise is None:
            return down, up
        return torch.cat([down, self.A0]), torch.cat([up, -self.B0], dim=1)
