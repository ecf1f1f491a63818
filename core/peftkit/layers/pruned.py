"""An adapter of whose matrices few entries are left, which alone are trained and kept; their places are chosen once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from peftkit.errors import PeftkitError
from peftkit.layers.wrapped import Wrapped
from peftkit.ports.adapter import Adapter

PLACES = "_places"
"""Behind the name of a matrix: the row-major places of its entries."""
SMALL = 0.01


class Pruned(Wrapped):
    """Of each matrix of an adapter `values` [count] under its name, and int32 places; vectors stay whole.

    The places are drawn evenly until `choose` sets them from what the matrices were at the start.
    """

    def __init__(self, plain: Adapter, density: float):
        super().__init__(plain)
        self.shapes: dict[str, torch.Size] = {}
        self.dense: dict[str, Tensor] = {}
        """The matrices at the start, until the places are chosen."""
        self.probes: dict[str, Tensor] = {}
        """What stands in the place of the matrices while they are looked at."""
        for key, parameter in list(self.plain.named_parameters()):
            if parameter.ndim > 1:
                self.shapes[key], self.dense[key] = parameter.shape, parameter.detach()
                count = max(1, round(density * parameter.numel()))
                self._put(key, torch.randperm(parameter.numel())[:count].sort().values)

    def forward(self, call: Any, *given: Tensor) -> Tensor:  # type: ignore[override]
        return functional_call(self.plain, self.probes or self.matrices(), (call, *given))

    def matrices(self) -> dict[str, Tensor]:
        """Return the matrices by name, zero where nothing is left."""
        found = {}
        for key, shape in self.shapes.items():
            values, places = self.tensor(key), self.tensor(key + PLACES)
            flat = values.new_zeros(math.prod(shape)).index_put((places.long(),), values)
            found[key] = flat.view(shape)
        return found

    @contextmanager
    def probed(self) -> Iterator[dict[str, Tensor]]:
        """Run whole matrices inside, those at the start, and in the place of zeros normal ones as wide as the others.

        They have the deviation SMALL where the adapter has no others.
        """
        device = next(self.plain.parameters()).device
        there = [start.flatten() for start in self.dense.values() if start.any()]
        deviation = torch.cat(there).square().mean().sqrt().item() if there else SMALL
        for key, start in self.dense.items():
            drawn = start if start.any() else torch.randn(start.shape) * deviation
            self.probes[key] = drawn.to(device, copy=True).requires_grad_()
        try:
            yield self.probes
        finally:
            self.probes = {}

    def choose(self, masks: Mapping[str, Tensor]) -> None:
        """Keep the entries of the masks, with the values that they have at the start."""
        for key, mask in masks.items():
            self._put(key, mask.flatten().nonzero().flatten())
        self.dense = {}

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        for key, shape in self.shapes.items():
            values, places = tensors.get(key), tensors.get(key + PLACES)
            if values is None or places is None or values.ndim != 1:
                continue
            outside = (places < 0) | (places >= math.prod(shape))
            if not places.is_meta and bool(outside.any()):
                raise PeftkitError(
                    f"the pruned {key} of {self.site.id} has places beyond its {math.prod(shape):,} numbers."
                )
            own, (owner, leaf) = self.tensor(key), self.owner(key)
            # The optimizer of a run that goes on knows the parameter already.
            own.data = own.data.new_zeros(len(values))
            owner.register_buffer(leaf + PLACES, self.tensor(key + PLACES).new_zeros(len(places)))

    def _put(self, key: str, places: Tensor) -> None:
        (owner, leaf), device = self.owner(key), self.tensor(key).device
        values = self.dense[key].to(places.device).flatten()[places]
        owner._parameters[leaf] = nn.Parameter(values.to(device, torch.float32))
        owner.register_buffer(leaf + PLACES, places.to(device, torch.int32))


def kept(scores: Mapping[Any, Tensor], count: int) -> dict[Any, Tensor]:
    """Return masks of the `count` largest entries over all scores, and of the largest of each at least."""
    flat = torch.cat([score.flatten().float() for score in scores.values()])
    sizes = [score.numel() for score in scores.values()]
    starts = torch.tensor([0, *sizes[:-1]], device=flat.device).cumsum(0)
    best = torch.stack([part.argmax() for part in flat.split(sizes)]) + starts
    flat[best] = math.inf
    chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    chosen[flat.topk(count).indices] = True
    parts = chosen.split(sizes)
    return {key: part.view(score.shape) for (key, score), part in zip(scores.items(), parts, strict=True)}


def erdos_renyi(shapes: Mapping[Any, torch.Size], count: int) -> dict[Any, int]:
    """Return how many of `count` entries each matrix keeps, where its share of them is as (rows + columns) / size.

    A matrix that would keep more than it has keeps all, and the others share what is left.
    """
    sizes = {key: math.prod(shape) for key, shape in shapes.items()}
    wants = {key: shape[0] + sizes[key] / shape[0] for key, shape in shapes.items()}
    full: set[Any] = set()
    while True:
        left = count - sum(sizes[key] for key in full)
        unit = left / max(1e-9, sum(wants[key] for key in wants if key not in full))
        over = {key for key in wants if key not in full and unit * wants[key] > sizes[key]}
        if not over:
            break
        full |= over
    exact = {key: float(sizes[key]) if key in full else unit * wants[key] for key in wants}
    counts = {key: max(1, int(value)) for key, value in exact.items()}
    # What rounding down left goes to the largest remainders.
    for key in sorted(exact, key=lambda key: int(exact[key]) - exact[key])[: max(0, count - sum(counts.values()))]:
        counts[key] += 1
    return counts
