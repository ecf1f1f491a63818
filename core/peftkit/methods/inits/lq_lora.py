"""A pair that takes the principal part first and leaves the rest to be packed: LQ-LoRA (Guo et al. 2023)."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.layers.probing import margins
from peftkit.methods.inits import INITS, Factorisation, Measured, drawn
from peftkit.methods.inits.loftq import check_packed, decompose
from peftkit.methods.inits.pissa import principal

ITERATIONS = 100
"""At most; the error rises long before."""
FISHER = "lq-lora-fisher"
LEAST = 1e-3
"""The least weight of a row or column, as a part of the mean one: none is lost for what the examples do not show."""


def lq_lora(adapter: Any, weight: Tensor) -> tuple[Tensor, ...]:
    """Alternate B A = the principal part of W - Q, and Q = what the format keeps of W - B A, from Q = 0.

    Ends when the error |W - Q - B A| does not fall any more, and keeps what was before (algorithm 1 of
    arXiv:2311.12023). Returns A and B of it, and once more with the scale in B: the pair before its Q.
    """
    check_packed(adapter, "lq-lora")
    one = torch.ones((), device=weight.device)
    return _alternated(adapter, weight, one, one, "lq-lora")


def lq_lora_fisher(adapter: Any, weight: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
    """Return what `lq_lora` does for the error |D (W - Q - B A) E|, the principal part being that of D (W - Q) E.

    D and E have the roots of the row and column means of the weight's empirical Fisher information, `seen` [out + in],
    and B and A are divided by them (section 3.4 of the paper). That is least for the information itself where its root
    has rank one. It is taken at the packed model, on the first examples of the run; the paper takes it at the dense one
    on a corpus, and has it decide the formats too.
    """
    rows, columns = (_roots(part) for part in seen.split(list(weight.shape)))
    return _alternated(adapter, weight, rows[:, None], columns, FISHER)


def _roots(means: Tensor) -> Tensor:
    """Return the roots of means, none far below their own mean, which is one; ones where nothing was seen."""
    roots = means.sqrt()
    middle = roots.mean()
    return (roots / middle).clamp(min=LEAST) if bool(middle > 0) else torch.ones_like(roots)


def _alternated(adapter: Any, weight: Tensor, rows: Tensor, columns: Tensor, name: str) -> tuple[Tensor, ...]:
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


def _undecided(adapter: Any, weight: Tensor) -> tuple[Tensor, ...]:
    """Return a drawn pair that adds nothing, and nothing to be taken from what is packed."""
    check_packed(adapter, FISHER)
    if not weight.is_meta and not adapter.has_original:
        raise PeftkitError(
            f"init '{FISHER}' answers what packing loses, and the original weight of {adapter.site.id} is not there: "
            "name the original model and set quantization."
        )
    return *drawn(adapter, weight), torch.zeros_like(adapter.A), torch.zeros_like(adapter.B)


INITS.add("lq-lora", Factorisation(lq_lora, answers=True))
INITS.add(FISHER, Measured(margins, lq_lora_fisher, split=True, answers=True, first=_undecided))
