"""LQ-LoRA's pair for errors that the Fisher information weighs (Guo et al. 2023, arXiv:2311.12023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.layers.probing import margins
from peftkit.methods.inits import INITS, Measured, drawn
from peftkit.methods.inits.loftq import check_packed
from peftkit.methods.inits.lq_lora import alternated

FISHER = "lq-lora-fisher"
LEAST = 1e-3
"""The least weight of a row or column, as a part of the mean one: none is lost for what the examples do not show."""


def lq_lora_fisher(adapter: Any, weight: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
    """Return what `lq_lora` does for the error |D (W - Q - B A) E|, the principal part being that of D (W - Q) E.

    D and E have the roots of the row and column means of the weight's empirical Fisher information, `seen` [out + in],
    and B and A are divided by them (section 3.4 of the paper). That is least for the information itself where its root
    has rank one. It is taken at the packed model, on the first examples of the run; the paper takes it at the dense one
    on a corpus, and has it decide the formats too.
    """
    rows, columns = (roots(part) for part in seen.split(list(weight.shape)))
    return alternated(adapter, weight, rows[:, None], columns, FISHER)


def roots(means: Tensor) -> Tensor:
    """Return the roots of means, none far below their own mean, which is one; ones where nothing was seen."""
    roots = means.sqrt()
    middle = roots.mean()
    return (roots / middle).clamp(min=LEAST) if bool(middle > 0) else torch.ones_like(roots)


def _undecided(adapter: Any, weight: Tensor) -> tuple[Tensor, ...]:
    """Return a drawn pair that adds nothing, and nothing to be taken from what is packed."""
    check_packed(adapter, FISHER)
    if not weight.is_meta and not adapter.has_original:
        raise PeftkitError(
            f"init '{FISHER}' answers what packing loses, and the original weight of {adapter.site.id} is not there: "
            "name the original model and set quantization."
        )
    return *drawn(adapter, weight), torch.zeros_like(adapter.A), torch.zeros_like(adapter.B)


INITS.add(FISHER, Measured(margins, lq_lora_fisher, split=True, answers=True, first=_undecided))
