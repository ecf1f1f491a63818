"""APOLLO: AdamW's scale of each channel by a random projection (Zhu et al. 2024, arXiv:2412.05270)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.optim import OPTIMIZERS
from peftkit.optim.adamw import AdamW, step_alone

RANK, INTERVAL = 32, 200
"""Rows of the projection, as in the paper's fine-tuning, and steps after which it is drawn anew."""
GROWTH = 1.01
"""What the norm of an update may grow by from one step to the next."""


@OPTIMIZERS.register("apollo")
class Apollo(torch.optim.Optimizer):
    """W [m, n], m <= n, loses lr G diag(s): s_j = sqrt(m / r) |A_j| / |R_j|, A Adam's direction of R = P G [r, n].

    P [r, m] is random with r = `rank` (32), the same for all matrices of a shape, drawn anew every `interval` (200)
    steps from their number, and not kept; of a tall W it stands on the other side. The factor sqrt(m / r) makes steps
    as large as those of AdamW, whose rates are kept. An update's norm grows by 1 % a step at most, as in the official
    code. Kept are both moments of R, 8 bytes for each of its r n numbers. Vectors, tensors of three dimensions, gates,
    scales, rows of prompts, and matrices whose smaller side is at most r are stepped by torch's AdamW, with 8 bytes a
    number: low-rank pairs of usual sizes gain nothing here, weights that are trained whole do.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float):
        defaults = {"betas": betas, "eps": eps, "rank": RANK, "interval": INTERVAL}
        super().__init__([dict(group) for group in groups], defaults)
        self.drawn: dict[tuple[Any, ...], tuple[int, Tensor]] = {}
        """By shape and device the projection of now, and its number."""

    @staticmethod
    def state_bytes(group: Mapping[str, Any], device: torch.device) -> int:
        """Count both moments of R and the norm of the last update, or AdamW's moments."""
        count = 0
        for parameter in group["params"]:
            rank = _rank(group, parameter)
            numbers = 2 * parameter.numel() if rank is None else 2 * rank * max(parameter.shape) + 1
            count += numbers * parameter.element_size()
        return count

    @staticmethod
    def state_shapes(group: Mapping[str, Any], parameter: Tensor) -> Mapping[str, Sequence[int]]:
        """Return those of the moments of R and of the last norm, or those of AdamW."""
        rank = _rank(group, parameter)
        if rank is None:
            return AdamW.state_shapes(group, parameter)
        low = (rank, max(parameter.shape))
        return {"step": (), "norm": (), "exp_avg": low, "exp_avg_sq": low}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if (rank := _rank(group, parameter)) is None:
                    step_alone(parameter, self.state[parameter], group)
                else:
                    self._update(parameter, parameter.grad, self.state[parameter], group, rank)

    def _update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any], rank: int
    ) -> None:
        tall = weight.shape[0] > weight.shape[1]
        wide = gradient.mT if tall else gradient
        if not state:
            state["step"], state["norm"] = torch.zeros(()), weight.new_zeros(())
            state["exp_avg"], state["exp_avg_sq"] = (weight.new_zeros(rank, wide.shape[1]) for _ in range(2))
        low = self._projection(rank, wide, int(state["step"]) // group["interval"]) @ wide
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        mean = state["exp_avg"].lerp_(low, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(low, low, value=1 - beta2)
        direction = mean / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + group["eps"])
        # A channel without a gradient has a direction left, and stays: there is nothing to scale.
        scales = math.sqrt(wide.shape[0] / rank) * direction.norm(dim=0) / low.norm(dim=0).clamp(min=1e-30)
        update = wide * scales
        norm = update.norm()
        if step > 1 and bool(state["norm"]):
            update *= (GROWTH * state["norm"] / norm.clamp(min=1e-30)).clamp(max=1)
            norm = norm.clamp(max=GROWTH * state["norm"])
        state["norm"].copy_(norm)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update.mT if tall else update, alpha=-group["lr"])

    def _projection(self, rank: int, wide: Tensor, number: int) -> Tensor:
        """Return P [rank, m] of normal numbers with a variance of 1 / rank, which keep the lengths of columns."""
        key = rank, wide.shape[0], wide.device
        held = self.drawn.get(key)
        if held is None or held[0] != number:
            drawn = torch.randn(rank, wide.shape[0], generator=torch.Generator().manual_seed(number))
            held = self.drawn[key] = number, (drawn / math.sqrt(rank)).to(wide.device)
        return held[1].to(wide.dtype)


def _rank(group: Mapping[str, Any], parameter: Tensor) -> int | None:
    """Return how many rows the projection of a tensor has; None for one that AdamW steps."""
    rank = group.get("rank", RANK)
    projected = parameter.ndim == 2 and group.get("multiplies", True) and min(parameter.shape) > rank
    return rank if projected else None
