"""What stands in front of a method whose updates are kept in a band and whose tensors are regularised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.dropped_out import drop_out
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.methods.in_front import Behind
from peftkit.ports.adapter import Adapter

START = "_start"
"""Behind the name of a tensor: what it was before training."""


@dataclass(frozen=True, kw_only=True)
class Controlled(Behind, Method):
    """Scales each module's update into a band of its norm over the module's, and adds terms to the loss."""

    band: tuple[float, float]
    decay: float
    weights: Mapping[str, float]
    seen: dict[str, Any] = field(default_factory=dict, compare=False)
    """What the step in hand needs: the tensors by module, their values before, and the norms for the log."""

    @property
    def finished(self) -> Method:
        return self.plain().finished

    def sites(self, layout: Layout) -> list[Site]:
        sites = super().sites(layout)
        fault = None
        if not sites and {"l2sp", "orthogonal", "dropout"} & self.weights.keys():
            fault = "has no adapters that a reg could act on"
        elif "l2sp" in self.weights and self.splits_base:
            fault = "starts from a part of the weights, which l2sp does not know"
        elif "dropout" in self.weights and any(site.role == "embedding" for site in sites):
            fault = "has rows in the sequence, which dropout cannot leave out"
        if fault is not None:
            raise PeftkitError(f"adaptive-lr-reg: reg: the method '{self.behind.name}' {fault}: leave that out of reg.")
        return sites

    def build(self, site: Site) -> Adapter:
        adapter = super().build(site)
        if "l2sp" in self.weights:
            for owner, leaf, parameter in _tensors(adapter):
                owner.register_buffer(leaf + START, parameter.detach().clone())
        return drop_out(adapter, self.weights["dropout"]) if "dropout" in self.weights else adapter

    def penalty(self, adapters: Mapping[str, Adapter]) -> Tensor | None:
        own, terms = super().penalty(adapters), []
        if "l2sp" in self.weights:
            apart = [
                (parameter - owner.get_buffer(leaf + START)).square().sum()
                for adapter in adapters.values()
                for owner, leaf, parameter in _tensors(adapter)
            ]
            terms.append(torch.stack(apart).sum() * self.weights["l2sp"])
        if "orthogonal" in self.weights:
            skew = [skewness(first) for adapter in adapters.values() if (first := _first(adapter)) is not None]
            terms += [torch.stack(skew).mean() * self.weights["orthogonal"]] if skew else []
        terms += [] if own is None else [own]
        return torch.stack(terms).sum() if terms else None

    def agreement(self) -> float:
        return super().agreement() + self.weights.get("agreement", 0.0)

    def groups(
        self, layout: Layout, parameters: Sequence[tuple[str, nn.Parameter]], learning_rate: float
    ) -> list[dict[str, Any]]:
        modules: dict[str, list[nn.Parameter]] = {}
        for key, parameter in parameters:
            modules.setdefault(_module(key), []).append(parameter)
        self.seen["modules"] = modules
        groups = super().groups(layout, parameters, learning_rate)
        return groups if self.decay == 1 else [part for group in groups for part in self._by_layer(layout, group)]

    def _by_layer(self, layout: Layout, group: dict[str, Any]) -> list[dict[str, Any]]:
        top, parts = len(layout.blocks) - 1, {}
        for key, parameter in group["params"]:
            layer = layout.layer_of(_module(key).partition("/")[2])
            parts.setdefault(top if layer is None else layer, []).append((key, parameter))
        return [{**group, "params": own, "lr": group["lr"] * self.decay ** (top - at)} for at, own in parts.items()]

    def after_backward(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        super().after_backward(adapters, step, steps)
        modules = self.seen.get("modules", {})
        self.seen["before"] = {name: [p.detach().clone() for p in own] for name, own in modules.items()}

    @torch.no_grad()
    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        norms, (low, high) = {}, self.band
        for name, before in self.seen.pop("before", {}).items():
            tensors = self.seen["modules"][name]
            size = torch.stack([old.norm() for old in before]).norm().item()
            moved = torch.stack([(p - old).norm() for p, old in zip(tensors, before, strict=True)]).norm().item()
            if not size or not moved:
                continue
            ratio = moved / size
            norms[name.partition("/")[2]] = float(f"{ratio:.3g}")
            factor = min(max(ratio, low), high) / ratio
            for parameter, old in zip(tensors, before, strict=True) if factor != 1 else ():
                parameter.copy_(torch.lerp(old, parameter, factor))
        self.seen["norms"] = norms
        super().after_step(adapters, step, steps)

    def told(self, adapters: Mapping[str, Adapter]) -> Mapping[str, Any]:
        return {**super().told(adapters), "update_norms": self.seen.get("norms", {})}

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        for adapter in adapters.values() if "l2sp" in self.weights else ():
            for owner, leaf, _ in _tensors(adapter):
                owner._buffers.pop(leaf + START, None)
        super().finish(adapters)


def skewness(matrix: Tensor) -> Tensor:
    """Return the mean squared cosine between different rows of a matrix; 0 where there is one."""
    rows = F.normalize(matrix.flatten(1), dim=1)
    count = len(rows)
    return ((rows @ rows.T).square().sum() - count) / max(1, count * (count - 1))


def _first(adapter: Adapter) -> Tensor | None:
    return next((parameter for _, _, parameter in _tensors(adapter) if parameter.ndim > 1), None)


def _module(key: str) -> str:
    """Return `<position>/<module>` of the key of a tensor: the site of an adapter, the module of an own parameter."""
    position, _, rest = key.partition("/")
    return f"{position}/{rest[4:].rpartition('.')[0] if rest.startswith('own/') else rest.rpartition('/')[0]}"


def _tensors(adapter: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for owner in adapter.modules():
        yield from ((owner, leaf, p) for leaf, p in owner.named_parameters(recurse=False) if p.requires_grad)
