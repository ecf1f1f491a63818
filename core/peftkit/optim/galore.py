"""GaLore: Adam on the gradient's projection to a subspace that follows it (Zhao et al. 2024, arXiv:2403.03507)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.optim import OPTIMIZERS


@OPTIMIZERS.register("galore")
class GaLoreAdam(torch.optim.Optimizer):
    """W [out, in] -= lr * scale * back(Adam(R)), with R [out, r] = G P' where out >= in and R [r, in] = P' G elsewhere.

    P holds the first r = `rank` right singular vectors of the gradient as rows [r, in], or the left ones as columns
    [out, r]; it is taken again every `interval` steps, the first one included, and the moments of R go on as they are,
    as in the official code. The moments and P are all that is kept. Weight decay and epsilon act as in AdamW.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float):
        defaults = {"betas": betas, "eps": eps, "rank": 8, "interval": 200, "scale": 0.25}
        super().__init__([dict(group) for group in groups], defaults)
        for shape in (list(parameter.shape) for group in self.param_groups for parameter in group["params"]):
            if len(shape) != 2:
                raise PeftkitError(f"galore trains matrices alone, and was given a tensor of the shape {shape}.")

    @staticmethod
    def state_bytes(group: Mapping[str, Any], device: torch.device) -> int:
        """Count both moments of R and P of every matrix: r * (2 * larger side + smaller side) numbers."""
        count = 0
        for parameter in group["params"]:
            small, large = sorted(parameter.shape)
            count += min(group["rank"], small) * (2 * large + small) * parameter.element_size()
        return count

    @staticmethod
    def state_shapes(group: Mapping[str, Any], parameter: Tensor) -> dict[str, Sequence[int]]:
        """Return those of P and of both moments of R."""
        rows, columns = parameter.shape
        rank = min(group["rank"], rows, columns)
        basis, low = ((rank, columns), (rows, rank)) if rows >= columns else ((rows, rank), (rank, columns))
        return {"step": (), "projection": basis, "exp_avg": low, "exp_avg_sq": low}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, parameter.grad, self.state[parameter], group)


def _update(weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
    right = weight.shape[0] >= weight.shape[1]
    if not state:
        state["step"] = torch.zeros(())
    if int(state["step"]) % group["interval"] == 0:
        state["projection"] = _basis(gradient, group["rank"], right)
    basis = state["projection"]
    low = gradient @ basis.T if right else basis.T @ gradient
    if "exp_avg" not in state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(low), torch.zeros_like(low)
    state["step"] += 1
    step, (beta1, beta2) = int(state["step"]), group["betas"]
    mean = state["exp_avg"].lerp_(low, 1 - beta1)
    square = state["exp_avg_sq"].mul_(beta2).addcmul_(low, low, value=1 - beta2)
    spread = (square.sqrt() / math.sqrt(1 - beta2**step)).add_(group["eps"])
    direction = mean / (1 - beta1**step) / spread
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.add_(direction @ basis if right else basis @ direction, alpha=-group["lr"] * group["scale"])


def _basis(gradient: Tensor, rank: int, right: bool) -> Tensor:
    """Return the first right singular vectors as rows [r, in], or the left ones as columns [out, r]."""
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    # A copy lets go of the vectors beyond the rank, and has the strides of one that is loaded: the same last bits.
    return (v[:rank] if right else u[:, :rank]).clone(memory_format=torch.contiguous_format)
