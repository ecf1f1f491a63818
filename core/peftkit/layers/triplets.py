"""A low-rank change as triplets of singular vectors and values, and their importance."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.layout import Site
from peftkit.ports.adapter import Call
from peftkit.ports.linear import Delta, linear

EPSILON = 1e-5
"""Added to the rank that the scale is divided by, as the official code does."""


class Triplets(Delta):
    """W + scale * P diag(l) Q with P [out, rank], l [rank], Q [rank, in] in fp32.

    While it is trained, the state also holds what a resumed run needs: the smoothed importance and uncertainty of
    every entry, and which triplets are `kept` [rank].
    """

    kept: Tensor

    def __init__(self, site: Site, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(site)
        self.scale = scale
        self.dropout = dropout
        self.P = nn.Parameter(torch.empty(site.outputs, rank).normal_(std=0.02))
        self.l = nn.Parameter(torch.zeros(rank))
        self.Q = nn.Parameter(torch.empty(rank, site.inputs).normal_(std=0.02))
        for key in "PlQ":
            self.register_buffer(f"importance_{key}", torch.zeros_like(getattr(self, key)))
            self.register_buffer(f"uncertainty_{key}", torch.zeros_like(getattr(self, key)))
        self.register_buffer("kept", torch.ones(rank, dtype=torch.bool))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        inside = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return call(x) + linear(linear(inside, self.Q) * (self.l * self.scale).to(x.dtype), self.P)

    def delta(self, weight: Tensor) -> Tensor:
        return (self.P * (self.l * self.scale)) @ self.Q

    def skew(self) -> list[Tensor]:
        """Return the Frobenius norms of P'P - I and QQ' - I."""
        one = torch.eye(len(self.l), device=self.l.device)
        return [torch.linalg.matrix_norm(self.P.T @ self.P - one), torch.linalg.matrix_norm(self.Q @ self.Q.T - one)]

    @torch.no_grad()
    def observe(self, beta1: float, beta2: float) -> None:
        """Smooth the sensitivity |w g| and its distance from the smoothed one, from the gradients in place."""
        for key in "PlQ":
            value = getattr(self, key)
            if value.grad is not None:
                sensitivity = (value * value.grad).abs()
                mean = getattr(self, f"importance_{key}").lerp_(sensitivity, 1 - beta1)
                getattr(self, f"uncertainty_{key}").lerp_((sensitivity - mean).abs(), 1 - beta2)

    def score(self) -> Tensor:
        """Return the score of each triplet [rank]: that of l plus the means over its two vectors."""
        p, value, q = (getattr(self, f"importance_{key}") * getattr(self, f"uncertainty_{key}") for key in "PlQ")
        return value + p.mean(0) + q.mean(1)

    @property
    def is_cut(self) -> bool:
        """Whether it holds the kept triplets alone."""
        return "kept" not in self._buffers

    def close(self) -> None:
        """Set l to zero at the triplets that are not kept."""
        with torch.no_grad():
            self.l.masked_fill_(~self.kept, 0)

    def cut(self) -> None:
        """Drop the triplets whose l is zero, which changes no output, and what training alone needs."""
        chosen = self.l.detach() != 0
        self.P.data, self.l.data, self.Q.data = self.P.data[:, chosen], self.l.data[chosen], self.Q.data[chosen]
        self._forget()

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        if "l" in tensors and "kept" not in tensors:
            self._forget()
        if "l" in tensors and tensors["l"].ndim == 1 and len(tensors["l"]) != len(self.l):
            rank = len(tensors["l"])
            self.P.data = self.P.data.new_zeros(self.P.shape[0], rank)
            self.l.data = self.l.data.new_zeros(rank)
            self.Q.data = self.Q.data.new_zeros(rank, self.Q.shape[1])

    def _forget(self) -> None:
        for key in list(self._buffers):
            delattr(self, key)
