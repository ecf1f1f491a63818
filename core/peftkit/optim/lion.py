"""Lion: steps of one size along the sign of a momentum (Chen et al. 2023, arXiv:2302.06675)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.optim import OPTIMIZERS


@OPTIMIZERS.register("lion")
class Lion(torch.optim.Optimizer):
    """x <- (1 - lr decay) x - lr sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g; (b1, b2) = `betas`.

    m is zero at first and as large as x: 4 bytes a number, half of what AdamW keeps. Every number moves by the whole
    rate, where AdamW's steps are smaller: the paper takes a third to a tenth of AdamW's rate, a weight decay as many
    times larger, and betas of 0.9 and 0.99. There is no epsilon.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float):
        super().__init__([dict(group) for group in groups], {"betas": betas})

    @staticmethod
    def state_bytes(group: Mapping[str, Any], device: torch.device) -> int:
        """Count the momentum of every tensor."""
        return sum(parameter.numel() * parameter.element_size() for parameter in group["params"])

    @staticmethod
    def state_shapes(group: Mapping[str, Any], parameter: Tensor) -> dict[str, Sequence[int]]:
        """Return that of the momentum."""
        return {"exp_avg": parameter.shape}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, parameter.grad, self.state[parameter], group)


def _update(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
    if not state:
        state["exp_avg"] = torch.zeros_like(parameter)
    mean, (beta1, beta2) = state["exp_avg"], group["betas"]
    direction = mean.lerp(gradient, 1 - beta1).sign_()
    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
    mean.lerp_(gradient, 1 - beta2)
