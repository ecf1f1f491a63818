"""A finished run opened for export: its base model with its adapter, and what the adapter changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftkit.adaptation import TENSORS, check_finite
from peftkit.assembly import Assembled, assemble, attach_adapter, read_run
from peftkit.errors import PeftkitError
from peftkit.models.samples import logits
from peftkit.recipe import Recipe

CPU = torch.device("cpu")


@dataclass(kw_only=True)
class Trained(Assembled):
    """A run's model in fp32 on the CPU with its adapter attached."""

    effect: float
    """The largest change of a logit on the sample prompts that the adapter makes."""

    def report(self) -> dict[str, Any]:
        """Return what every export says of its origin."""
        methods = [method.name for method in self.adaptation.described]
        return {"base": self.name, "methods": methods, "adapter_effect": self.effect}

    def check_mergeable(self) -> None:
        """Raise PeftkitError where the adapter cannot be merged into the weights."""
        refusal = self.adaptation.unmergeable()
        if refusal is not None:
            raise PeftkitError(refusal)


def open_base(recipe: Recipe, *, packed: bool = False) -> Assembled:
    """Assemble a recipe's base in fp32 on the CPU, in its original weights or `packed` as the recipe says."""
    return assemble(recipe, bare=True, original=not packed, device=CPU, dtype=torch.float32)


def open_run(run: Path, *, packed: bool = False) -> Trained:
    """Assemble the run's base model in fp32 and attach its adapter.

    The base stands in its original weights, or `packed` as it was trained on. Raises PeftkitError where `run` is no
    finished run, and for an adapter of another base, damaged, or not finite.
    """
    base = open_base(read_run(run), packed=packed)
    before = logits(base.module, base.tokenizer)
    trained = attach_adapter(base, run / "adapter", original=not packed)
    check_finite(run / "adapter" / TENSORS, trained.adaptation.state())
    # Of several sets of adapters that keys choose from, the first one is looked at.
    first = None if trained.adaptation.keys is None else torch.zeros(1, dtype=torch.long)
    with trained.adaptation.context.with_keys(first):
        effect = float((logits(trained.module, trained.tokenizer, trained.adaptation.soft_ids) - before).abs().max())
    return Trained(**vars(trained), effect=effect)
