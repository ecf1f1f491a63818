"""A low-rank change as triplets of singular vectors and values, their importance, and their Hugging Face peft form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Site
from peftkit.ports.adapter import Call
from peftkit.ports.linear import Delta, linear
from peftkit.ports.low_rank import PREFIX, join

EPSILON = 1e-5
"""Added to the rank that the scale is divided by, as the official code does."""
FLAGS = ("use_dora", "modules_to_save", "fan_in_fan_out", "layer_replication", "megatron_config", "lora_bias")


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


def most_stored(sites: Sequence[Site], start: int, rank: int) -> int:
    """Return the most numbers that are saved of `rank` triplets a site on average.

    The importance of triplets decides where they stay; most is saved where the largest sites keep all that they start
    with, which are `start` or as many as the site allows.
    """
    left, total = rank * len(sites), 0
    for site in sorted(sites, key=lambda site: site.inputs + site.outputs, reverse=True):
        kept = min(left, start, site.inputs, site.outputs)
        left, total = left - kept, total + kept * (site.inputs + site.outputs + 1)
    return total


def to_hf_peft(
    adapters: Mapping[str, Triplets], dropout: float, target_rank: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the AdaLoRA configuration and tensors of Hugging Face peft; modules without a triplet are left out.

    The scale and l go into P, so that the parts of a fused module become one set of triplets; lora_E undoes the
    reader's own scale.
    """
    pairs = {
        key: (a.Q.detach(), a.P.detach() * (a.l.detach() * a.scale), a.site) for key, a in adapters.items() if len(a.l)
    }
    modules = join(pairs)
    if not modules:
        raise PeftkitError("every triplet is closed, and Hugging Face peft has no adapter of rank 0.")
    start = max(down.shape[0] for down, _ in modules.values())
    tensors: dict[str, Tensor] = {}
    pattern = {}
    for path, (down, up) in modules.items():
        rank = down.shape[0]
        tensors[f"{PREFIX}{path}.lora_A"] = down
        tensors[f"{PREFIX}{path}.lora_B"] = up
        tensors[f"{PREFIX}{path}.lora_E"] = torch.full((rank, 1), (start + EPSILON) / start, device=down.device)
        pattern |= {f"{path}.lora_E": [index < rank for index in range(start)]} if rank < start else {}
    config = {
        "peft_type": "ADALORA",
        "task_type": "CAUSAL_LM",
        "init_r": start,
        "target_r": target_rank,
        "lora_alpha": start,
        "lora_dropout": dropout,
        "total_step": 1,
        "rank_pattern": pattern or None,
        "target_modules": sorted(modules),
        "bias": "none",
        "inference_mode": True,
    }
    return config, tensors


def from_hf_peft(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the state by '<path>/<tensor>' and the rank of each module of an AdaLoRA adapter of Hugging Face peft."""
    extras = [key for key in FLAGS if config.get(key)] + (["bias"] if config.get("bias", "none") != "none" else [])
    if config.get("peft_type") != "ADALORA" or set(extras) - {"fan_in_fan_out"}:
        raise PeftkitError(f"adapter_config.json: only plain ADALORA can be read; set there: {', '.join(extras)}.")
    state, ranks = {}, {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_([ABE])(?:\.default)?", key)
        if match is None:
            raise PeftkitError(f"adapter_model.safetensors: the tensor '{key}' is not part of a plain adapter.")
        name = {"A": "Q", "B": "P", "E": "l"}[match[2]]
        state[f"{match[1]}/{name}"] = tensor.float().flatten() if name == "l" else tensor.float()
        if name == "l":
            ranks[match[1]] = tensor.shape[0]
    return state, ranks
