"""A pair that takes the principal part first and leaves the rest to be packed: LQ-LoRA (Guo et al. 2023)."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from peftkit.methods.inits import INITS, Factorisation
from peftkit.methods.inits.loftq import check_packed, decompose
from peftkit.methods.inits.pissa import principal

ITERATIONS = 100
"""At most; the error rises long before."""


def lq_lora(adapter: Any, weight: Tensor) -> tuple[Tensor, ...]:
    """Alternate B A = the principal part of W - Q, and Q = what the format keeps of W - B A, from Q = 0.

    Ends when the error |W - Q - B A| does not fall any more, and keeps what was before (algorithm 1 of
    arXiv:2311.12023). Returns A and B of it, and once more with the scale in B: the pair before its Q.
    """
    check_packed(adapter, "lq-lora")
    one = torch.ones((), device=weight.device)
    return alternated(adapter, weight, one, one, "lq-lora")


def alternated(adapter: Any, weight: Tensor, rows: Tensor, columns: Tensor, name: str) -> tuple[Tensor, ...]:
    """Find the pair for errors that are multiplied by `rows` [out, 1] and `columns` [in]."""
    kept, errors = torch.zeros_like(weight), []
    best: tuple[Tensor, ...] = ()
    while len(errors) < ITERATIONS:
        down, own_up = principal(adapter, *decompose(rows * (weight - kept) * columns, adapter.A.shape[0]))
        down, own_up = down / columns, own_up / rows
        up = own_up * adapter.scale
        kept = adapter.rounded(weight - up @ down)
        error = torch.linalg.norm(rows * (weight - kept - up @ down) * columns)
        if errors and not error.is_meta and error >= errors[-1]:
            break
        errors.append(error)
        best = (down, own_up, down, up)
        if error.is_meta:
            break
    if not weight.is_meta:
        listed = ", ".join(f"{float(error):.4g}" for error in errors)
        plain = torch.linalg.norm(rows * (weight - adapter.rounded(weight)) * columns)
        logging.getLogger("peftkit").info(f"{name} %s: %s; without it %.4g", adapter.site.id, listed, float(plain))
    return best


INITS.add("lq-lora", Factorisation(lq_lora, answers=True))
