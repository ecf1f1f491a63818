"""An adapter cut out of a prototype that all places share, by a mask of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from peftkit.layers.wrapped import Wrapped
from peftkit.ports.adapter import Adapter, undecayed

SCORES, BITS = "_scores", "_bits"
"""Behind the name of a matrix: what its mask is taken from in training, and the mask itself, eight entries a byte."""


class Prototype(nn.Module):
    """The tensors that adapters of one shape share: those of the first, `<name>_<sizes>`."""

    def __init__(self, adapters: Iterable[Adapter]):
        super().__init__()
        self.undecayed: set[str] = set()
        for adapter in adapters:
            left = undecayed(adapter)
            for key, parameter in adapter.named_parameters():
                if place(key, parameter) not in self._parameters:
                    self.register_parameter(place(key, parameter), parameter)
                if key in left:
                    self.undecayed.add(place(key, parameter))


def place(key: str, tensor: Tensor) -> str:
    """Return the name of a tensor in the prototype."""
    return f"{key.replace('.', '_')}_{'x'.join(map(str, tensor.shape))}"


class Masked(Wrapped):
    """Runs an adapter whose matrices are the prototype's times a mask of ones at the `density` largest |scores|.

    Scores are Kaiming uniform, and the gradient of a mask goes straight to |scores| in training. Vectors are the
    prototype's. Once `fixed`, bits stand in the place of the scores.
    """

    def __init__(self, plain: Adapter, density: float, fixed: bool):
        super().__init__(plain)
        self.density = density
        self.places = {key: place(key, parameter) for key, parameter in self.plain.named_parameters()}
        self.shapes = {key: p.shape for key, p in self.plain.named_parameters() if p.ndim > 1}
        self.undecayed = tuple(key + SCORES for key in self.shapes)
        for key in self.places:
            owner, leaf = self.owner(key)
            owner._parameters[leaf] = None
            if key in self.shapes:
                # Kaiming uniform: a variance of 2 over the inputs.
                bound = math.sqrt(6 * self.shapes[key][0] / self.shapes[key].numel())
                scores = torch.empty(self.shapes[key]).uniform_(-bound, bound)
                owner.register_parameter(leaf + SCORES, nn.Parameter(scores))
        if fixed:
            self.fix()

    def forward(self, call: Any, *given: Tensor) -> Tensor:  # type: ignore[override]
        prototype = self.shared
        tensors = {}
        for key, name in self.places.items():
            tensor = prototype.get_parameter(name)
            tensors[key] = tensor * self.mask(key) if key in self.shapes else tensor
        return functional_call(self.plain, tensors, (call, *given))

    def mask(self, key: str) -> Tensor:
        """Return the mask of a matrix, with the gradient of |scores| while there are scores."""
        owner, leaf = self.owner(key)
        if leaf + BITS in owner._buffers:
            return unpacked(self.tensor(key + BITS), self.shapes[key])
        scores = self.tensor(key + SCORES).abs()
        hard = torch.zeros_like(scores).flatten()
        hard[scores.detach().flatten().topk(max(1, round(self.density * scores.numel()))).indices] = 1.0
        hard = hard.view_as(scores)
        return hard + (scores - scores.detach()) if self.training else hard

    def fix(self) -> None:
        """Put the bits of the masks in the place of the scores."""
        for key in self.shapes:
            owner, leaf = self.owner(key)
            bits = packed(self.mask(key).detach() > 0)
            del owner._parameters[leaf + SCORES]
            owner.register_buffer(leaf + BITS, bits)


def packed(mask: Tensor) -> Tensor:
    """Return the bits of a mask, eight to a byte, the first entry in the lowest."""
    flat = mask.flatten()
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).view(-1, 8).to(torch.uint8)
    return (flat << torch.arange(8, device=flat.device, dtype=torch.uint8)).sum(1).to(torch.uint8)


def unpacked(bits: Tensor, shape: torch.Size) -> Tensor:
    """Return the mask, zeros and ones of fp32, that bits stand for."""
    flat = (bits[:, None] >> torch.arange(8, device=bits.device, dtype=torch.uint8)) & 1
    return flat.flatten()[: shape.numel()].view(shape).float()
