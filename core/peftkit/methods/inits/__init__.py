"""How a low-rank pair starts: one file for each choice, a function on the adapter that holds A, B, scale and site."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.probing import examples
from peftkit.layout import Site
from peftkit.registry import Registry

SAMPLES = 256
"""Examples that a choice looks at."""
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


def drawn(adapter: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return A from the Kaiming uniform distribution with a = sqrt 5, and B zero."""
    down = torch.empty_like(adapter.A)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    return down, torch.zeros_like(adapter.B)


@dataclass(frozen=True)
class Measured:
    """A choice that looks at the first examples of a run: until then, and without any, A is drawn and B is zero.

    `measure(model, adapters, rows)` returns what was seen by site, and `compute(adapter, W, seen)` the pair A [rank,
    in], B [out, rank] from it. With `split` the frozen weight keeps W - s B A. Where it `answers` what packing loses,
    as a `Factorisation` may, W is the weight before packing, and A1 and B1 come with the pair; `first` gives all four
    until then.
    """

    measure: Callable[..., Mapping[str, Tensor]]
    compute: Callable[[Any, Tensor, Tensor], tuple[Tensor, ...]]
    split: bool = False
    answers: bool = False
    first: Callable[[Any, Tensor], tuple[Tensor, ...]] = drawn

    def __call__(self, adapter: Any) -> None:
        """Draw A from the Kaiming uniform distribution and set B to zero."""
        if self.split:
            adapter.split(self.first, self.answers)
        else:
            adapter.A.data.copy_(drawn(adapter, adapter.A)[0])
            nn.init.zeros_(adapter.B)

    def prepare(self, model: nn.Module, adapters: Mapping[str, Any], batches: Iterable[Any]) -> None:
        """Find every adapter's pair on the first examples of the batches."""
        for key, seen in self.measure(model, adapters, examples(batches, SAMPLES)).items():
            adapter = adapters[key]
            adapter.begin(*self.compute(adapter, adapter.original().detach().float(), seen))


def splits(init: str) -> bool:
    """Say whether a choice takes the pair out of the frozen weight."""
    choice = INITS[init]
    return isinstance(choice, Factorisation) or (isinstance(choice, Measured) and choice.split)


def check_split(name: str, init: str, plain: bool, sites: Sequence[Site]) -> None:
    """Refuse a choice that the method `name` or a site cannot follow; `plain`: the method adds s B A and no more."""
    stack = next((site.id for site in sites if site.stack is not None), None)
    if isinstance(INITS[init], Measured) and stack is not None:
        raise PeftkitError(
            f"{name}: init '{init}' looks at what each weight reads, which no expert of {stack} shows: leave 'experts' "
            "out of targets, or choose another init."
        )
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
