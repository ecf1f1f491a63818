"""Which weights of a frozen map are set to zero: a registry, each entry a frozen dataclass in a file of its own.

An entry says how much each weight [out, in] counts (`scores`), and how many neighbours are compared (`compared`). What
is kept is the same for all: the share `sparsity` with the smallest scores goes, or of each m inputs of an output that
lie side by side all but n (`pattern`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.options import Options
from peftkit.quantization.inputs import Inputs
from peftkit.registry import Registry

PRUNERS: Registry[type[Pruner]] = Registry("pruning", "peftkit.pruning")
DEFAULT = 0.5
"""The share of weights that goes where a recipe says neither a share nor a pattern."""


@dataclass(frozen=True, kw_only=True)
class Pruner(Options, registry=PRUNERS):
    """The options of one way to prune as a recipe writes them; raises PeftkitError where two of them do not agree."""

    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    sparsity: Annotated[float, Ge(0), Lt(1)] | None = None
    """Share of the weights that is set to zero, 0.5 where there is no `pattern`."""
    pattern: str | None = None
    """`n:m`, in quotes, such as '2:4': of each m inputs of an output that lie side by side n keep their weight."""
    targets: str | tuple[str, ...] = "linear"
    """Maps to prune: roles, groups or module-name patterns."""
    exclude: tuple[str, ...] = ()
    """Targets to leave out again."""

    def __post_init__(self) -> None:
        if self.pattern is None:
            return
        found = re.fullmatch(r"(\d{1,3}):(\d{1,3})", self.pattern)
        if found is None or not 0 < int(found[1]) < int(found[2]):
            allowed = "n:m with n from 1 and below m, in quotes, such as '2:4'"
            raise PeftkitError(f"{self.name}: pattern: found '{self.pattern}'; allowed: {allowed}")
        if self.sparsity is not None:
            fault = f"found '{self.pattern}' beside sparsity {self.sparsity:g}; allowed: one of them"
            raise PeftkitError(f"{self.name}: pattern: {fault}")

    @property
    def shown(self) -> bool:
        """Whether it looks at what maps read on examples."""
        return False

    def scores(self, weight: Tensor, inputs: Inputs | None) -> Tensor:
        """Return how much each weight [out, in] in fp32 counts; `inputs` are what it reads, where `shown`."""
        raise TypeError(f"the pruning '{self.name}' does not say how much a weight counts")

    def compared(self, scores: Tensor) -> Tensor:
        """Return `scores` [out, in] in rows whose smallest go; by default each output by itself."""
        return scores

    def check(self, inputs: int, where: str) -> None:
        """Raise PeftkitError where a map of so many inputs, called `where`, has no such pattern."""
        size = int(self.pattern.partition(":")[2]) if self.pattern else 1
        if inputs % size:
            raise PeftkitError(
                f"pruning: pattern {self.pattern} does not divide the {inputs} inputs of {where}: choose another, or "
                "leave it out with exclude."
            )

    def kept(self, weight: Tensor, inputs: Inputs | None = None) -> Tensor:
        """Return which weights [out, in] stay, as booleans; of equal scores the first ones go."""
        scores = self.scores(weight.detach().float(), inputs)
        if self.pattern is None:
            rows, share = self.compared(scores), DEFAULT if self.sparsity is None else self.sparsity
            gone = int(rows.shape[1] * share)
        else:
            stay, size = map(int, self.pattern.split(":"))
            rows, gone = scores.reshape(-1, size), size - stay
        smallest = rows.argsort(dim=1, stable=True)[:, :gone]
        return torch.ones_like(rows, dtype=torch.bool).scatter_(1, smallest, False).view(weight.shape)
