"""A pair that answers what packing the weight loses: LoftQ (Li et al. 2023, arXiv:2310.08659)."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.methods.inits import INITS, Factorisation
from peftkit.methods.inits.pissa import principal
from peftkit.methods.inits.pissa_fast import leading

ITERATIONS = 5
"""The paper's T."""
SMALL = 512
"""Weights with a side up to this are decomposed exactly, larger ones by subspace iteration."""
PRODUCTS = 4
"""Its iterations: what they leave of the error is within a percent of the exact one's."""


def loftq(adapter: Any, weight: Tensor) -> tuple[Tensor, ...]:
    """Alternate Q = what the format keeps of W - B A, and B A = the principal part of W - Q, from B A = 0.

    The error |W - Q - B A| need not fall each time, because rounding is no projection: the best of 5 iterations is
    taken (the official code takes the last). Returns A and B of it, and the pair that stood before its Q.
    """
    check_packed(adapter, "loftq")
    if not weight.is_meta and not adapter.has_original:
        raise PeftkitError(
            f"init 'loftq' answers what packing loses, and the original weight of {adapter.site.id} is not there: name "
            "the original model and set quantization."
        )
    down, up = torch.zeros_like(adapter.A), torch.zeros_like(adapter.B)
    errors, best = [], (down, up, down, up)
    for _ in range(ITERATIONS):
        rest = weight - adapter.rounded(weight - up @ down)
        before = (down, up)
        own_down, own_up = principal(adapter, *decompose(rest, adapter.A.shape[0]))
        down, up = own_down, own_up * adapter.scale
        errors.append(torch.linalg.norm(rest - up @ down))
        if errors[-1].is_meta or errors[-1] == min(errors):
            best = (own_down, own_up, *before)
    if not weight.is_meta:
        listed = ", ".join(f"{float(error):.4g}" for error in errors)
        plain = torch.linalg.norm(weight - adapter.rounded(weight))
        logging.getLogger("peftkit").info("loftq %s: %s; without it %.4g", adapter.site.id, listed, float(plain))
    return best


def check_packed(adapter: Any, init: str) -> None:
    """Refuse a choice that answers what packing loses where the weight is not packed."""
    if adapter.exact:
        raise PeftkitError(
            f"init '{init}' answers what packing loses, and the weight of {adapter.site.id} is not packed: set "
            "quantization, or choose another init."
        )


def decompose(rest: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular triplets U [out, n], S [n], V^T [n, in] of W [out, in], of a large one the leading ones."""
    if min(rest.shape) <= SMALL:
        return torch.linalg.svd(rest, full_matrices=False)
    return leading(rest, rank, PRODUCTS)


INITS.add("loftq", Factorisation(loftq, answers=True))
