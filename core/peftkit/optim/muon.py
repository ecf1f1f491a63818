"""Muon: a momentum made orthogonal is the step of a matrix (Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import muon

from peftkit.optim import OPTIMIZERS
from peftkit.optim.adamw import AdamW, step_alone

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the polynomial that brings singular values near one in five steps (Jordan et al. 2024)."""


@OPTIMIZERS.register("muon")
class Muon(torch.optim.Optimizer):
    """torch's Muon for W [out, in] that multiplies hidden states, torch's AdamW for all else that a group holds.

    W <- (1 - lr decay) W - 0.2 sqrt(max(out, in)) lr U V' with U S V' = (1 - b1) g + b1 m (Nesterov) and
    m <- b1 m + (1 - b1) g, b1 the first of `betas`; five Newton-Schulz steps in bf16 give U V' up to singular values
    near one. The factor makes steps as large as those of AdamW, whose rates are kept. m is all that is kept,
    4 bytes a number. Vectors, tensors of three dimensions, gates, scales and rows of prompts keep AdamW's 8;
    tables of embeddings that are trained whole count as matrices.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float):
        super().__init__([dict(group) for group in groups], {"betas": betas, "eps": eps})

    @staticmethod
    def state_bytes(group: Mapping[str, Any], device: torch.device) -> int:
        """Count the momentum of matrices, and both moments of all else."""
        return sum(
            (1 if _is_turned(group, parameter) else 2) * parameter.numel() * parameter.element_size()
            for parameter in group["params"]
        )

    @staticmethod
    def state_shapes(group: Mapping[str, Any], parameter: Tensor) -> Mapping[str, Sequence[int]]:
        """Return that of the momentum, or those of AdamW."""
        turned = _is_turned(group, parameter)
        return {"momentum_buffer": parameter.shape} if turned else AdamW.state_shapes(group, parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if _is_turned(group, parameter):
                    _update(parameter, parameter.grad, self.state[parameter], group)
                else:
                    step_alone(parameter, self.state[parameter], group)


def _is_turned(group: Mapping[str, Any], parameter: Tensor) -> bool:
    return parameter.ndim == 2 and group.get("multiplies", True)


def _update(weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
    if not state:
        state["momentum_buffer"] = torch.zeros_like(weight)
    muon(
        [weight],
        [gradient],
        [state["momentum_buffer"]],
        foreach=False,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        momentum=group["betas"][0],
        nesterov=True,
        ns_coefficients=COEFFICIENTS,
        eps=1e-7,
        ns_steps=5,
        adjust_lr_fn="match_rms_adamw",
        has_complex=False,
    )
