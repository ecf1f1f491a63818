"""AdamW whose moments are kept in 8 bits (Dettmers et al. 2021, arXiv:2110.02861), by the kernels of bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.optim import OPTIMIZERS
from peftkit.optim.adamw import MOMENTS, AdamW, take_step
from peftkit.quantization.kernels import bitsandbytes

BLOCK = 256
"""Values of a moment that share one scale."""
SMALLEST = 4096
"""Values of a tensor from which on its moments are packed; those of smaller ones stay in fp32, as in the library."""


@OPTIMIZERS.register("adamw-8bit")
class AdamW8bit(torch.optim.Optimizer):
    """The update of `AdamW8bit` in bitsandbytes, bit for bit; small tensors are stepped by torch's AdamW.

    A packed moment is one code [as the tensor] of the dynamic 8-bit values and one scale for each 256 of them in a row
    [blocks], fp32. Raises PeftkitError where bitsandbytes is not there or has no such step on a tensor's device.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float):
        super().__init__([dict(group) for group in groups], {"betas": betas, "eps": eps})
        _library()
        from bitsandbytes.functional import create_dynamic_map

        self.values = [create_dynamic_map(signed=True), create_dynamic_map(signed=False)]
        kinds = {parameter.device.type for group in self.param_groups for parameter in group["params"]}
        for kind in kinds:
            _check(kind)

    @staticmethod
    def state_bytes(group: Mapping[str, Any], device: torch.device) -> int:
        """Count the codes and scales of both moments of every tensor, or the moments themselves of a small one."""
        _library()
        sizes = [parameter.numel() for parameter in group["params"]]
        return sum(8 * size if size < SMALLEST else 2 * (size + 4 * -(-size // BLOCK)) for size in sizes)

    @staticmethod
    def state_shapes(group: Mapping[str, Any], parameter: Tensor) -> dict[str, Sequence[int]]:
        """Return those of AdamW, and of the scales of packed moments."""
        small, blocks = parameter.numel() < SMALLEST, -(-parameter.numel() // BLOCK)
        scales = {} if small else {f"{key}_scale": (blocks,) for key in MOMENTS}
        return {**AdamW.state_shapes(group, parameter), **scales}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        _begin(state, parameter)
                    if "exp_avg_scale" in state:
                        self._update(parameter, state, group)
                    else:
                        take_step(parameter, [state[key] for key in MOMENTS], state["step"], group, fused=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for key in MOMENTS if "exp_avg_scale" in state else ():
                # torch has cast the codes to the parameter's dtype, which holds each of them exactly.
                state[key] = state[key].to(torch.uint8)

    def _update(self, parameter: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        state["step"] += 1
        self.values = [values.to(parameter.device) for values in self.values]
        assert parameter.grad is not None
        bitsandbytes().optimizer_update_8bit_blockwise(
            "adam",
            parameter.grad.contiguous(),
            parameter,
            *(state[key] for key in MOMENTS),
            *group["betas"],
            0.0,
            0.0,
            group["eps"],
            int(state["step"]),
            group["lr"],
            *self.values,
            *(state[f"{key}_scale"] for key in MOMENTS),
            group["weight_decay"],
            1.0,
            False,
        )


def _begin(state: dict[str, Any], parameter: Tensor) -> None:
    state["step"] = torch.zeros((), dtype=torch.float32)
    small = parameter.numel() < SMALLEST
    for key in MOMENTS:
        state[key] = torch.zeros_like(parameter, dtype=torch.float32 if small else torch.uint8)
        if not small:
            blocks = -(-parameter.numel() // BLOCK)
            state[f"{key}_scale"] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)


def _library() -> None:
    if bitsandbytes() is None:
        raise PeftkitError(
            "train.optimizer: adamw-8bit needs bitsandbytes, which cannot be imported here: pip install bitsandbytes, "
            "or use adamw or adamw-offload."
        )


def _check(device: str) -> None:
    name = "bitsandbytes::optimizer_update_8bit_blockwise"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(name, torch._C._dispatch_key_for_device(device)):
        raise PeftkitError(
            f"train.optimizer: adamw-8bit has no step on {device} in the bitsandbytes that is installed: pip install "
            "-U bitsandbytes, or use adamw or adamw-offload."
        )
