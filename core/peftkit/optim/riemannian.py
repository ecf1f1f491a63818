"""Riemannian preconditioning of low-rank pairs in front of AdamW (Zhang and Pilanci 2024, arXiv:2402.02347)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.optim import OPTIMIZERS
from peftkit.optim.adamw import AdamW

DAMPING = 1e-6
"""The paper's small number that makes the matrices of a pair at zero invertible."""


@OPTIMIZERS.register("riemannian")
class Riemannian(torch.optim.AdamW):
    """torch's AdamW on (B' B + e)^-1 G_A and G_B (A A' + e)^-1 for pairs B A, and on the gradients of all else.

    A is [rank, in], B [out, rank], G_A and G_B their gradients, e 1e-6 on the diagonal; both are preconditioned by what
    the pair was before the step, so that the change of B A depends less on how A and B share its size. The moments are
    AdamW's: 8 bytes a number. Pairs are those of adapters that are a plain product and train both factors.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float):
        super().__init__([dict(group) for group in groups], betas=betas, eps=eps, foreach=False)

    @staticmethod
    def state_bytes(group: Mapping[str, Any], device: torch.device) -> int:
        """Count those of AdamW."""
        return AdamW.state_bytes(group, device)

    @staticmethod
    def state_shapes(group: Mapping[str, Any], parameter: Tensor) -> Mapping[str, Sequence[int]]:
        """Return those of AdamW."""
        return AdamW.state_shapes(group, parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients, which are left preconditioned."""
        held = {key: p for group in self.param_groups for key, p in zip(group["keys"], group["params"], strict=True)}
        pairs = [(held.get(a), held.get(b)) for group in self.param_groups for a, b in group.get("pairs", ())]
        whole = [(a, b) for a, b in pairs if a is not None and b is not None]
        whole = [(a, b) for a, b in whole if a.grad is not None and b.grad is not None]
        for down, up in whole:
            down.grad = torch.linalg.solve(_damped(up.mT @ up), down.grad)
            up.grad = torch.linalg.solve(_damped(down @ down.mT), up.grad, left=False)
        super().step()


def _damped(gram: Tensor) -> Tensor:
    return gram + DAMPING * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
