"""AdamW whose moments stay in the host's memory and visit the device for their step (Dettmers et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.optim import OPTIMIZERS
from peftkit.optim.adamw import MOMENTS, AdamW, take_step


@OPTIMIZERS.register("adamw-offload")
class AdamWOffload(torch.optim.Optimizer):
    """The update of `adamw`, bit for bit, with both moments on the CPU, pinned where the device is a GPU.

    The paper (arXiv:2305.14314) pages them through CUDA's unified memory; here those of the next tensor are fetched
    before one tensor is updated, so that the device holds the moments of two tensors at most.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float):
        super().__init__([dict(group) for group in groups], {"betas": betas, "eps": eps})

    @staticmethod
    def state_bytes(group: Mapping[str, Any], device: torch.device) -> int:
        """Count both moments of every tensor on the CPU; elsewhere those of the two largest, which visit together."""
        sizes = sorted(
            (2 * parameter.numel() * parameter.element_size() for parameter in group["params"]), reverse=True
        )
        return sum(sizes if device.type == "cpu" else sizes[:2])

    @staticmethod
    def state_shapes(group: Mapping[str, Any], parameter: Tensor) -> Mapping[str, Sequence[int]]:
        """Return those of AdamW."""
        return AdamW.state_shapes(group, parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients."""
        due = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter, _ in due:
            self._begin(parameter)
        fetched = self._fetch(due[0][0]) if due else []
        for index, (parameter, group) in enumerate(due):
            here = fetched
            fetched = self._fetch(due[index + 1][0]) if index + 1 < len(due) else []
            self._update(parameter, group, here)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state; its moments go to the host's memory again."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            for key in MOMENTS:
                state[key] = _host(state[key], parameter)

    def _begin(self, parameter: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for key in MOMENTS:
                state[key] = _host(torch.zeros_like(parameter, device="cpu"), parameter)

    def _fetch(self, parameter: Tensor) -> list[Tensor]:
        """Bring the moments to the parameter's device; on the CPU they are there."""
        state = self.state[parameter]
        return [state[key].to(parameter.device, non_blocking=True) for key in MOMENTS]

    def _update(self, parameter: Tensor, group: Mapping[str, Any], moments: list[Tensor]) -> None:
        state = self.state[parameter]
        fused = parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda")
        take_step(parameter, moments, state["step"], group, fused=fused)
        for key, moment in zip(MOMENTS, moments, strict=True):
            if moment is not state[key]:
                state[key].copy_(moment, non_blocking=True)


def _host(moment: Tensor, parameter: Tensor) -> Tensor:
    """Return a moment in the host's memory, from where a GPU's parameter fetches it without waiting."""
    moment = moment.to("cpu")
    return moment.pin_memory() if parameter.is_cuda else moment
