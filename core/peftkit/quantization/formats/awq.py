"""Whole numbers of weights whose inputs are scaled, so that those with large activations are kept best: AWQ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from peftkit.quantization.calibrated import Calibrated
from peftkit.quantization.inputs import Inputs
from peftkit.quantization.weight import ZERO_POINTS

SMALLEST = 1e-4
"""What a channel's mean activation counts as at least, so that no scale is 0: the official code's."""


@dataclass(frozen=True, kw_only=True)
class AWQ(Calibrated, name="awq"):
    """Q(W diag(s)) diag(s)^-1 with s = mean |x|^alpha for each input; alpha has the least |W X - Q X|^2.

    The tried alphas are 0, 1/n, ... (n-1)/n for `alphas` n, and s is divided by the root of its largest times its
    smallest (equation 5 of the paper). s stays beside the codes, [in] in fp32, and is not folded into the map before,
    so that adapters see the inputs as they are. The official code also clips weights, which is left out here.
    """

    paper: ClassVar[str] = "Lin et al. 2023, arXiv:2306.00978"
    summary: ClassVar[str] = "Evenly spaced, 4 to 16 values a group; inputs with large activations are kept best."

    alphas: int = 20
    """Exponents of the activations that are tried, evenly spaced from 0, which leaves the inputs as they are, to 1."""

    def faults(self) -> list[str]:
        allowed = 1 <= self.alphas <= 1000
        return [*super().faults(), *([] if allowed else [f"alphas: found {self.alphas}; allowed: from 1 to 1000"])]

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        return self.scaled(weight, torch.ones(weight.shape[1], device=weight.device))

    def scaled(self, weight: Tensor, channels: Tensor) -> dict[str, Tensor]:
        """Return the packed tensors of `weight` [out, in] with its inputs scaled by `channels` [in]."""
        return {**super().encode(weight * channels), "channels": channels}

    def encode_for(self, weight: Tensor, inputs: Inputs) -> dict[str, Tensor]:
        shape, moments = (weight.shape[0], weight.shape[1]), inputs.moments.to(weight.device)
        size = inputs.mean_size.to(weight.device).clamp(min=SMALLEST)
        best, least = self.encode(weight), float("inf")
        for number in range(self.alphas):
            channels = size ** (number / self.alphas)
            parts = self.scaled(weight, channels / (channels.max() * channels.min()).sqrt())
            lost = weight - self.decode(parts, shape)
            error = float(((lost @ moments) * lost).sum(dtype=torch.float64))
            if error < least:
                best, least = parts, error
        return best

    @property
    def traits(self) -> frozenset[str]:
        # A zero point moves the weights of a group by one step, and here each input has a step of its own.
        return super().traits - {ZERO_POINTS}

    def basis(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return super().basis(parts, shape) / parts["channels"]

    def error_bound(self, weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        channels = parts["channels"]
        return super().error_bound(weight.float() * channels, parts) / channels
