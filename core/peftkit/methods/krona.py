"""KronA adds a Kronecker product of two small matrices to a frozen weight (Edalati et al. 2022, arXiv:2212.10650)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site, parse_layers
from peftkit.method import Learns, Method, Targets
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta
from peftkit.ports.low_rank import PREFIX


@dataclass(frozen=True, kw_only=True)
class KronA(Method, name="krona"):
    """W + s (A kron B) with A [a1, a2], B [b1, b2], a1 b1 = out, a2 b2 = in; its rank is rank A times rank B.

    A starts from the Kaiming uniform distribution and B from zero, which is thus the base. The product is applied
    without being built: (A kron B) x is A X B^T row by row, X being x as [a2, b2].
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Edalati et al. 2022, arXiv:2212.10650"
    summary: ClassVar[str] = (
        "Adds a Kronecker product of two small trainable matrices, of full rank with few parameters. Merges into the "
        "weights."
    )
    default_learning_rate: ClassVar[float] = 0.1
    size: ClassVar[str | None] = "factor"
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = ({"factor": 4, "scale": 2.0, "targets": ["linear", "head"]},)
    learns: ClassVar[Learns] = Learns(loss=3.0, steps=60, learning_rate=3e-2)

    factor: Annotated[int, Ge(1)] | None = None
    """Sides of A: this number, or the largest divisor below it; by default the divisor next to the square root."""
    scale: Annotated[float, Gt(0)] = 1.0
    """The factor s of the product."""
    targets: Targets = ("q", "v")
    """Roles (q k v o gate up down head), groups (attention, mlp, linear) or module-name patterns."""
    exclude: tuple[str, ...] = ()
    """Targets to leave out again."""
    layers: tuple[int, ...] | str | None = None
    """Layers to adapt, such as 0-3,8; all by default."""

    def sites(self, layout: Layout) -> list[Site]:
        return layout.resolve(self.targets, parse_layers(self.layers), self.exclude)

    def build(self, site: Site) -> Adapter:
        return Kronecker(site, self)

    def count(self, layout: Layout) -> int:
        sides = [(self.side(s.outputs), self.side(s.inputs), s) for s in self.sites(layout)]
        return sum(a1 * a2 + (site.outputs // a1) * (site.inputs // a2) for a1, a2, site in sides)

    def sizes(self, layout: Layout) -> list[int]:
        sides = {size for site in self.sites(layout) for size in (site.inputs, site.outputs)}
        factors = {factor for size in sides for factor in range(1, size + 1) if size % factor == 0}
        # Of factors that store alike (A and B change places) the smallest is kept.
        found = {replace(self, factor=factor).count(layout): factor for factor in sorted(factors, reverse=True)}
        return [found[count] for count in sorted(found)]

    def side(self, size: int) -> int:
        """Return the side of A in a dimension of the weight; it divides `size`."""
        if self.factor is not None and size % self.factor == 0:
            return self.factor
        most = min(math.isqrt(size), self.factor or size)
        return next(side for side in range(most, 0, -1) if size % side == 0)

    def hf_peft(self, adapters: Mapping[str, Adapter], model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {}
        largest = 1
        for adapter in cast(dict[str, Kronecker], adapters).values():
            if adapter.site.rows is not None or not isinstance(adapter.site.module, nn.Linear):
                raise PeftkitError(
                    f"{self.name}: {adapter.site.id} is part of a fused module or no plain linear, which Hugging Face "
                    "peft does not take for this method: use --format merged."
                )
            tensors[f"{PREFIX}{adapter.site.path}.lokr_w1"] = adapter.A.detach() * self.scale
            tensors[f"{PREFIX}{adapter.site.path}.lokr_w2"] = adapter.B.detach()
            largest = max(largest, *adapter.B.shape)
        config = {
            "peft_type": "LOKR",
            "task_type": "CAUSAL_LM",
            "r": largest,  # a rank this large means there that both matrices are whole
            "alpha": largest,
            "decompose_both": False,
            "decompose_factor": self.factor or -1,
            "target_modules": sorted(adapter.site.path for adapter in adapters.values()),
            "inference_mode": True,
        }
        return config, tensors

    @classmethod
    def reads_hf_peft(cls, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") == "LOKR"

    @classmethod
    def from_hf_peft(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout
    ) -> tuple[Method, dict[str, Tensor]]:
        state, paths, factor = {}, set(), int(config.get("decompose_factor", -1))
        for key, tensor in tensors.items():
            path, _, name = key.removeprefix(PREFIX).rpartition(".")
            if name not in ("lokr_w1", "lokr_w2"):
                raise PeftkitError(
                    f"adapter_model.safetensors: '{key}' is of a factorised matrix; only whole ones can be read."
                )
            paths.add(path)
            first = name == "lokr_w1"
            state[f"{path}/{'A' if first else 'B'}"] = tensor.float()
        method = cls(
            factor=factor if factor > 0 else None,
            scale=float(config["alpha"]) / config["r"],
            targets=tuple(sorted(paths)),
        )
        return method, state


class Kronecker(Delta):
    """A pair A [a1, a2], B [b1, b2] whose Kronecker product [out, in] is added to a frozen linear."""

    def __init__(self, site: Site, method: KronA):
        super().__init__(site)
        self.scale = method.scale
        a1, a2 = method.side(site.outputs), method.side(site.inputs)
        self.A = nn.Parameter(torch.empty(a1, a2))
        self.B = nn.Parameter(torch.zeros(site.outputs // a1, site.inputs // a2))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        left, right = self.A.to(x.dtype), self.B.to(x.dtype)
        product = left @ x.unflatten(-1, (left.shape[1], right.shape[1])) @ right.T
        return call(x) + product.flatten(-2) * self.scale

    def delta(self, weight: Tensor) -> Tensor:
        return torch.kron(self.A, self.B) * self.scale
