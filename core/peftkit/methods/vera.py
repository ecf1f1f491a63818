"""VeRA trains two vectors a layer around random matrices that all layers share (Kopiczko et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site, parse_layers
from peftkit.method import Learns, Method, Targets
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta, linear
from peftkit.ports.low_rank import PREFIX


@dataclass(frozen=True, kw_only=True)
class VeRA(Method, name="vera"):
    """W + diag(b) B diag(d) A with b [out] and d [rank] trained, A [rank, in] and B [out, rank] frozen and random.

    A and B have the largest in and out of all sites, and each site takes their first columns and rows. They follow
    from `projection_seed` by torch's generator of the CPU, the same on every machine, and are not saved unless
    `save_projection` asks for it. b is zero and d 0.1 at the start, which is thus the base.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "reparameterisation"
    paper: ClassVar[str] = "Kopiczko et al. 2023, arXiv:2310.11454"
    summary: ClassVar[str] = (
        "Trains two vectors for each layer around a random low-rank pair shared by all. A tenth of LoRA's numbers."
    )
    default_learning_rate: ClassVar[float] = 0.18
    rate_falls_with_width: ClassVar[bool] = False
    size: ClassVar[str | None] = "rank"
    bounded_rank: ClassVar[bool] = False
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"rank": 64, "targets": ["linear", "head"], "save_projection": True, "projection_seed": 7, "dropout": 0.1},
    )
    learns: ClassVar[Learns] = Learns(loss=3.5, steps=60, learning_rate=5e-2)

    rank: Annotated[int, Ge(1)] = 256
    """Inner size of the shared pair; it may exceed the layers' sizes."""
    start: float = 0.1
    """The value of d at the start."""
    projection_seed: Annotated[int, Ge(0)] = 0
    """Seed of the shared matrices."""
    save_projection: bool = False
    """Save the shared matrices instead of regenerating them from their seed."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability of dropping an input element of the adapter in training."""
    targets: Targets = ("q", "v")
    """Roles (q k v o gate up down head), groups (attention, mlp, linear) or module-name patterns."""
    layers: tuple[int, ...] | str | None = None
    """Layers to adapt, such as 0-3,8; all by default."""

    def sites(self, layout: Layout) -> list[Site]:
        return layout.resolve(self.targets, parse_layers(self.layers))

    def share(self, layout: Layout) -> nn.Module:
        sites = self.sites(layout)
        return Projection(self, max(site.inputs for site in sites), max(site.outputs for site in sites))

    def build(self, site: Site) -> Adapter:
        return Vectors(site, self)

    def count(self, layout: Layout) -> int:
        return sum(site.outputs + self.rank for site in self.sites(layout))

    def stored(self, layout: Layout) -> int:
        sides = map(max, zip(*((site.inputs, site.outputs) for site in self.sites(layout)), strict=True))
        return self.count(layout) + (self.rank * sum(sides) if self.save_projection else 0)

    def hf_peft(self, adapters: Mapping[str, Adapter], model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        mine = cast(dict[str, Vectors], adapters)
        part = next((adapter.site.id for adapter in mine.values() if adapter.site.rows is not None), None)
        if part is not None:
            raise PeftkitError(f"{self.name}: Hugging Face peft takes whole modules, not {part}: use --format merged.")
        config = {
            "peft_type": "VERA",
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "projection_prng_key": self.projection_seed,
            "save_projection": True,
            "vera_dropout": self.dropout,
            "target_modules": sorted(mine),
            "inference_mode": True,
        }
        shared = next(iter(mine.values())).shared
        tensors = {"base_model.vera_A": shared.A, "base_model.vera_B": shared.B}
        for path, adapter in mine.items():
            tensors |= {f"{PREFIX}{path}.vera_lambda_{key}": getattr(adapter, key).detach() for key in "bd"}
        return config, tensors

    @classmethod
    def from_hf_peft(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout
    ) -> tuple[Method, dict[str, Tensor]]:
        state = {}
        for key, tensor in tensors.items():
            path, _, name = key.removeprefix(PREFIX).removeprefix("base_model.").rpartition(".")
            if name not in ("vera_A", "vera_B", "vera_lambda_b", "vera_lambda_d"):
                raise PeftkitError(f"adapter_model.safetensors: the tensor '{key}' is not part of a VeRA adapter.")
            state[f"{path or 'shared'}/{name[-1]}"] = tensor.float()
        seed, dropout = config.get("projection_prng_key") or 0, float(config.get("vera_dropout") or 0)
        rank, saved = config["r"], "shared/A" in state
        targets = tuple(sorted({key.rpartition("/")[0] for key in state} - {"shared"}))
        return cls(rank=rank, projection_seed=seed, save_projection=saved, dropout=dropout, targets=targets), state


class Projection(nn.Module):
    """The frozen pair A [rank, in], B [out, rank] that all adapters share."""

    A: Tensor
    B: Tensor

    def __init__(self, method: VeRA, inputs: int, outputs: int):
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(method.projection_seed)
        for name, shape in (("A", (method.rank, inputs)), ("B", (outputs, method.rank))):
            bound = math.sqrt(6 / shape[1])  # Kaiming: a uniform of variance 2 / fan-in
            drawn = torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, drawn, persistent=method.save_projection)


class Vectors(Delta):
    """The trained vectors b [out] and d [rank] of one site."""

    def __init__(self, site: Site, method: VeRA):
        super().__init__(site)
        self.dropout = method.dropout
        self.b = nn.Parameter(torch.zeros(site.outputs))
        self.d = nn.Parameter(torch.full((method.rank,), method.start))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        inside = F.dropout(x, self.dropout, self.training) if self.dropout else x
        down, up = self._pair()
        return call(x) + linear(linear(inside, down) * self.d.to(x.dtype), up) * self.b.to(x.dtype)

    def delta(self, weight: Tensor) -> Tensor:
        down, up = self._pair()
        return (self.b[:, None] * up * self.d) @ down

    def _pair(self) -> tuple[Tensor, Tensor]:
        return self.shared.A[:, : self.site.inputs], self.shared.B[: self.site.outputs]
