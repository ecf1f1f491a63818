"""How a low-rank pair starts: one file for each choice, a function on the adapter that holds A, B, scale and site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.layout import Site
from peftkit.registry import Registry

INITS: Registry[Callable[[Any], None]] = Registry("initialisation", "peftkit.methods.inits")


@dataclass(frozen=True)
class Factorisation:
    """A choice that takes the pair out of the frozen weight W [out, in], which keeps W - s B A.

    `compute(adapter, W)` returns A [rank, in] and B [out, rank] from W in fp32. Where it `answers` what packing loses,
    it returns A1 [rank, in] and B1 [out, rank] too: what is packed is W - B1 A1.
    """

    compute: Callable[[Any, Tensor], tuple[Tensor, ...]]
    answers: bool = False

    def __call__(self, adapter: Any) -> None:
        """Have the adapter find its pair once it stands at its weight."""
        adapter.split(self.compute, self.answers)


def splits(init: str) -> bool:
    """Say whether a choice takes the pair out of the frozen weight."""
    return isinstance(INITS[init], Factorisation)


def check_split(name: str, init: str, plain: bool, sites: Sequence[Site]) -> None:
    """Refuse a choice that the method `name` or a site cannot follow; `plain`: the method adds s B A and no more."""
    if not splits(init):
        return
    if not plain:
        drawn = ", ".join(other for other in INITS.names() if not splits(other))
        raise PeftkitError(
            f"{name}: init '{init}' takes s B A out of the frozen weight, and this method does not add s B A as it "
            f"stands: choose one of {drawn}."
        )
    tied = next((site.id for site in sites if site.tied), None)
    if tied is not None:
        raise PeftkitError(
            f"{name}: init '{init}' would change the weight of {tied}, which the embedding shares: leave it out of "
            "targets, untie the model's embeddings, or choose another init."
        )
