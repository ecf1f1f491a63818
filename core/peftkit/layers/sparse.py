"""A change of few entries of a weight, kept as indices and values, and the choice of the largest entries over sites."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Site
from peftkit.ports.linear import Delta

LOW, HIGH = -1.5, 1.5
"""Between what a gate is stretched before it is clipped to [0, 1]."""


def entries(site: Site, density: float) -> int:
    """Return how many of a site's weights make up the share `density`, at least one."""
    return max(1, round(density * site.outputs * site.inputs))


def largest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return masks shaped as the scores that choose exactly the `count` largest entries over all of them."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    chosen[flat.topk(count).indices] = True
    parts = chosen.split([score.numel() for score in scores.values()])
    return {key: part.view(score.shape) for (key, score), part in zip(scores.items(), parts, strict=True)}


class SparseDelta(Delta):
    """W + a matrix with `values` [count] at the row-major positions `indices` [count] and zero elsewhere.

    The values start at zero; the positions are spread evenly until `choose` sets them. An index takes 4 bytes and a
    value 4, so that the pair is smaller than the dense change while less than half of the entries change.
    """

    indices: Tensor

    def __init__(self, site: Site, count: int):
        super().__init__(site)
        size = site.outputs * site.inputs
        self.register_buffer("indices", torch.arange(count, dtype=torch.int32) * (size // max(1, count)))
        self.values = nn.Parameter(torch.zeros(count))

    def delta(self, weight: Tensor) -> Tensor:
        flat = self.values.new_zeros(self.site.outputs * self.site.inputs)
        return flat.index_put((self.indices.long(),), self.values).view(self.site.outputs, self.site.inputs)

    def choose(self, mask: Tensor, values: Tensor | None = None) -> None:
        """Change the entries of the mask [out, in] from now on, starting from `values` [out, in], by default zero."""
        self.indices = mask.flatten().nonzero().flatten().int()
        start = torch.zeros(mask.shape, device=mask.device) if values is None else values.detach()
        # Not in place: a graph that a model keeps from an earlier pass knows the parameter by its size.
        self.values = nn.Parameter(start[mask].to(self.values.dtype))

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        indices, size = tensors.get("indices"), self.site.outputs * self.site.inputs
        if indices is not None and not indices.is_meta and bool(((indices < 0) | (indices >= size)).any()):
            raise PeftkitError(f"the sparse change of {self.site.id} has places beyond its {size:,} weights.")
        values = tensors.get("values")
        if values is not None and values.ndim == 1 and len(values) != len(self.values):
            self.indices = self.indices.new_zeros(len(values))
            self.values.data = self.values.data.new_zeros(len(values))


class DenseDelta(Delta):
    """A dense change w [out, in], zero at the start."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.w = nn.Parameter(torch.zeros(site.outputs, site.inputs))

    def delta(self, weight: Tensor) -> Tensor:
        return self.change()

    def change(self) -> Tensor:
        """Return what is added to the weight [out, in]."""
        return self.w

    @contextmanager
    def probed(self) -> Iterator[Tensor]:
        """Give the tensor [out, in] whose gradient is that of the weight."""
        yield self.w


class MaskedDelta(DenseDelta):
    """A dense change w [out, in], zero at the start, of which a mask may keep entries, until it becomes sparse.

    `fixed` says that the entries off the mask count as zero: a flag in the state, and no branch, so that the kept
    entries of a resumed run are those of the saved one.
    """

    kept: Tensor
    fixed: Tensor
    dropped: ClassVar[tuple[str, ...]] = ("w", "kept", "fixed")
    """What is gone once the change is sparse."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.register_buffer("kept", torch.ones_like(self.w, dtype=torch.bool))
        self.register_buffer("fixed", torch.zeros(1, dtype=torch.bool))
        self.sparse: SparseDelta | None = None

    def delta(self, weight: Tensor) -> Tensor:
        return self.change() if self.sparse is None else self.sparse.delta(weight)

    def change(self) -> Tensor:
        return self.w * torch.where(self.fixed, self.kept, True).to(self.w.dtype)

    def fix(self, mask: Tensor, change: Tensor) -> None:
        """Keep the entries of the mask [out, in], with these values."""
        self.kept.copy_(mask)
        self.w.copy_(change * mask)
        self.fixed.fill_(True)

    def sparsify(self) -> None:
        """Leave the kept entries alone, as indices and values."""
        self._become_sparse(int(self.kept.sum())).choose(self.kept, self.w)
        self._drop()

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        values = tensors.get("sparse.values")
        if values is not None and values.ndim == 1 and self.sparse is None:
            self._become_sparse(len(values))
            self._drop()
        if self.sparse is not None:
            prefix = "sparse."
            self.sparse.fit({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})

    def _become_sparse(self, count: int) -> SparseDelta:
        self.sparse = SparseDelta(self.site, count).to(self.w.device)
        return self.sparse

    def _drop(self) -> None:
        for key in self.dropped:
            setattr(self, key, None)


class GatedDelta(MaskedDelta):
    """A dense change w [out, in] with gates, until `sparsify` leaves the kept entries alone."""

    dropped: ClassVar[tuple[str, ...]] = (*MaskedDelta.dropped, "a", "group")
    undecayed: tuple[str, ...] = ("a",)

    def __init__(self, site: Site, structured: bool):
        super().__init__(site)
        self.a = nn.Parameter(torch.full_like(self.w, 5.0))
        self.group = nn.Parameter(torch.full((1,), 5.0)) if structured else None

    def change(self) -> Tensor:
        """Return z * w [out, in]."""
        gates = self.gate(self.a) if self.group is None else self.gate(self.a) * self.gate(self.group)
        return self.w * torch.where(self.fixed, self.kept.to(gates.dtype), gates)

    def expected(self) -> Tensor:
        """Return the expected number of open gates; none is counted once the kept entries are fixed."""
        shift = math.log(-LOW / HIGH)
        opened = torch.sigmoid(self.a - shift).sum()
        both = opened if self.group is None else opened * torch.sigmoid(self.group - shift).sum()
        return both * ~self.fixed.squeeze()

    def gate(self, a: Tensor) -> Tensor:
        """Return the gates z of a: by u = 1/2, and by uniform u in training."""
        if self.training:
            u = torch.empty_like(a).uniform_(1e-6, 1 - 1e-6)
            a = torch.logit(u) + a
        return (torch.sigmoid(a) * (HIGH - LOW) + LOW).clamp(0, 1)


def keep_largest(adapters: Mapping[str, MaskedDelta], changes: Mapping[str, Tensor], density: float) -> None:
    """Fix exactly the share `density` of all entries, those with the largest change by size, at their values."""
    count = sum(entries(adapter.site, density) for adapter in adapters.values())
    for key, mask in largest({key: change.abs() for key, change in changes.items()}, count).items():
        adapters[key].fix(mask, changes[key])


def dense_ones(adapters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the adapters whose entries are still to be chosen: where training goes on from a saved one, they stay."""
    return {key: each for key, each in adapters.items() if each.sparse is None}
