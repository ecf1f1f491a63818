"""AdaLoRA spreads a budget of ranks over the layers by importance (Zhang et al. 2023, arXiv:2303.10512)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.layers.sparse import largest
from peftkit.layers.triplets import EPSILON, Triplets
from peftkit.layout import Layout, Site
from peftkit.method import Ranked
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(Ranked, name="adalora"):
    """W + s P diag(l) Q with P [out, r], l [r], Q [r, in], s = alpha / (r + 1e-5); l starts at zero.

    P and Q start at N(0, 0.02). The loss gains orthogonality * mean(|P'P - I|, |QQ' - I|), unsquared as in the
    official code where the paper squares. Each entry's sensitivity |w g| and its uncertainty are smoothed; a triplet's
    score is that of l_i plus the means over P_i and Q_i. Every `interval` steps the triplets outside the budget get
    l_i = 0: the budget stays for `warmup`, falls with the cube of the time left to `rank` a module, and is fixed for
    `final`. Closed triplets are cut out of the saved adapter.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.10512"
    summary: ClassVar[str] = (
        "Adds a low-rank change in singular-value form. Ranks move during training to the layers that need them."
    )
    default_learning_rate: ClassVar[float] = 0.032

    rank: Annotated[int, Ge(1)] = 8
    """Mean rank of a module at the end."""
    initial_rank: Annotated[int, Ge(1)] | None = None
    """Rank r of each module at the start, at most what its layer allows; by default 1.5 times `rank`."""
    alpha: Annotated[float, Gt(0)] = 32.0
    """Scale: the change is multiplied by alpha / (initial rank + 1e-5)."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an input element of the adapter in training."""
    orthogonality: Annotated[float, Ge(0)] = 0.1
    """Weight of the penalty that keeps P and Q orthogonal."""
    betas: tuple[Annotated[float, Gt(0), Lt(1)], Annotated[float, Gt(0), Lt(1)]] = (0.85, 0.85)
    """Smoothing of the sensitivity and of the uncertainty."""
    warmup: Annotated[float, Ge(0)] = 0.1
    """Time before the budget falls: a share of all steps when below 1, else steps."""
    final: Annotated[float, Ge(0)] = 0.3
    """Time at the end with fixed ranks: a share of all steps when below 1, else steps."""
    interval: Annotated[int, Ge(1)] = 10
    """Steps from one allocation to the next."""

    @property
    def start(self) -> int:
        """The rank r of a module at the start."""
        return self.initial_rank or (3 * self.rank + 1) // 2

    def sites(self, layout: Layout) -> list[Site]:
        sites = super().sites(layout)
        if self.start < self.rank:
            raise PeftkitError(f"{self.name}: initial_rank {self.start} is below the final rank {self.rank}: raise it.")
        return sites

    def build(self, site: Site) -> Adapter:
        return Triplets(
            site, min(self.start, site.inputs, site.outputs), self.alpha / (self.start + EPSILON), self.dropout
        )

    def saved(self, layout: Layout) -> int:
        """Return the most numbers that are saved: the largest sites keep all the triplets that they start with."""
        sites = self.sites(layout)
        left, total = self.rank * len(sites), 0
        for site in sorted(sites, key=lambda site: site.inputs + site.outputs, reverse=True):
            kept = min(left, self.start, site.inputs, site.outputs)
            left, total = left - kept, total + kept * (site.inputs + site.outputs + 1)
        return total

    def penalty(self, adapters: Mapping[str, Adapter]) -> Tensor | None:
        norms = [norm for a in cast(Mapping[str, Triplets], adapters).values() for norm in a.skew()]
        return self.orthogonality * torch.stack(norms).mean()

    def phases(self, steps: int) -> tuple[int, int]:
        """Return after how many steps the budget begins to fall and when it is reached, or raise PeftkitError."""
        warmup, final = (int(t * steps) if t < 1 else int(t) for t in (self.warmup, self.final))
        if warmup >= steps - final:
            raise PeftkitError(
                f"{self.name}: warmup ({warmup}) and final ({final}) leave none of {steps} steps to spread the ranks: "
                "lower them, or train longer."
            )
        return warmup, steps - final

    def budget(self, done: int, steps: int, first: int, last: int) -> int:
        """Return how many triplets stay after `done` of `steps` steps: from `first` to `last` by a cubic."""
        begin, end = self.phases(steps)
        if done <= begin:
            return first
        return last if done >= end else int((first - last) * (1 - (done - begin) / (end - begin)) ** 3 + last)

    def after_backward(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        if _spread(adapters):
            self.phases(steps)

    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        triplets = _spread(adapters)
        if not triplets:
            return
        begin, end = self.phases(steps)
        done = step + 1
        if done < end:
            for adapter in triplets.values():
                adapter.observe(*self.betas)
        if begin < done <= end and (done % self.interval == 0 or done == end):
            first = sum(len(adapter.l) for adapter in triplets.values())
            count = self.budget(done, steps, first, min(first, self.rank * len(triplets)))
            for key, mask in largest({key: a.score() for key, a in triplets.items()}, count).items():
                triplets[key].kept.copy_(mask)
                triplets[key].close()
        elif done > end:
            for adapter in triplets.values():
                adapter.close()

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        for adapter in adapters.values():
            cast(Triplets, adapter).cut()


def _spread(adapters: Mapping[str, Adapter]) -> dict[str, Triplets]:
    """Return the adapters whose ranks are still to be found: where training goes on from a saved one, they stay."""
    return {key: adapter for key, adapter in cast(Mapping[str, Triplets], adapters).items() if not adapter.is_cut}
