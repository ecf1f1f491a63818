"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from peftkit.optim import OPTIMIZERS

MOMENTS = ("exp_avg", "exp_avg_sq")


@OPTIMIZERS.register("adamw")
class AdamW(torch.optim.AdamW):
    """torch's AdamW over `groups` (each holds `params`, `lr` and `weight_decay`), one fused kernel per tensor."""

    def __init__(self, groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float):
        fused = all(
            parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point()
            for group in groups
            for parameter in group["params"]
        )
        super().__init__([dict(group) for group in groups], betas=betas, eps=eps, fused=fused)

    @staticmethod
    def state_bytes(group: Mapping[str, Any], device: torch.device) -> int:
        """Count both moments of every tensor."""
        return sum(2 * parameter.numel() * parameter.element_size() for parameter in group["params"])

    @staticmethod
    def state_shapes(group: Mapping[str, Any], parameter: Tensor) -> dict[str, Sequence[int]]:
        """Return those of the count of steps and of both moments."""
        return {"step": (), **dict.fromkeys(MOMENTS, parameter.shape)}


def take_step(
    parameter: Tensor, moments: Sequence[Tensor], step: Tensor, group: Mapping[str, Any], fused: bool
) -> None:
    """Step one tensor of a group along its gradient by torch's function, in place as its two moments and its count."""
    assert parameter.grad is not None
    adamw(
        [parameter],
        [parameter.grad],
        [moments[0]],
        [moments[1]],
        [],
        [step],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
        fused=fused,
    )


def step_alone(parameter: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
    """Step one tensor as AdamW does, for an optimizer that leaves it to that one, and begin its `state` where empty."""
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state.update({key: torch.zeros_like(parameter) for key in MOMENTS})
    take_step(parameter, [state[key] for key in MOMENTS], state["step"], group, fused=False)
