"""FISH-DIP chooses the trained weights anew while it learns, on the hardest examples (Das et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, cast

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from peftkit.layers.probing import Rows, examples, fisher, surprise
from peftkit.layers.sparse import MaskedDelta, dense_ones, entries, largest
from peftkit.layout import Layout, Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class FishDip(Targeted, name="fish-dip"):
    """W + w whose gradient is kept at the share `density` of weights with the largest Fisher information at the time.

    Every `interval` steps that is measured on the `hardest` of the first `samples` examples, those with the highest
    loss by token, which the state holds while it trains, cut to `longest` tokens. The official code takes them from the
    batches as they come. What has changed is saved, the union over all masks, as positions and values. Training
    holds the adapted weights three times more. Without `samples` what is saved is trained further, and nothing chosen.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "selection"
    paper: ClassVar[str] = "Das et al. 2023, arXiv:2311.03748"
    summary: ClassVar[str] = (
        "Trains the weights with the largest squared gradients on the examples that are hardest at the time, chosen "
        "again and again. All that changed is saved."
    )
    default_learning_rate: ClassVar[float] = 0.042

    density: Annotated[float, Gt(0), Lt(0.5)] = 0.01
    """Share of the adapted weights that is trained at a time."""
    interval: Annotated[int, Ge(1)] = 100
    """Steps between choices."""
    samples: Annotated[int, Ge(0)] = 64
    """Examples among which the hardest are looked for."""
    hardest: Annotated[int, Ge(1)] = 25
    """How many of them the choice is made on."""
    longest: Annotated[int, Ge(2)] = 256
    """Tokens of each example that are kept."""
    targets: Targets = "linear"

    @property
    def finished(self) -> FishDip:
        return replace(self, samples=0)

    def share(self, layout: Layout) -> nn.Module | None:
        return Pool(self, layout.model) if self.samples else None

    def build(self, site: Site) -> Adapter:
        return MaskedDelta(site)

    def saved(self, layout: Layout) -> int:
        """Return twice the number of all entries: each that has changed has a position and a change."""
        return 2 * sum(site.outputs * site.inputs for site in self.sites(layout))

    def prepare(self, model: nn.Module, adapters: Mapping[str, Adapter], batches: Iterable[Any]) -> None:
        if (pool := _pool(adapters)) is not None:
            pool.fill(examples(batches, self.samples))
            self.choose(adapters, pool)

    def choose(self, adapters: Mapping[str, Adapter], pool: Pool) -> None:
        """Keep the gradients of the entries that matter on the hardest examples; without any, of evenly spread ones."""
        dense = dense_ones(adapters)
        information = fisher(pool.model, dense, pool.hardest(self.hardest)) if dense else None
        if information is not None:
            count = sum(entries(adapter.site, self.density) for adapter in dense.values())
            for key, mask in largest(information, count).items():
                dense[key].kept.copy_(mask)

    def after_backward(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        for adapter in cast(Mapping[str, MaskedDelta], dense_ones(adapters)).values():
            if adapter.w.grad is not None:
                adapter.w.grad.mul_(adapter.kept)

    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        pool = _pool(adapters)
        if pool is not None and (step + 1) % self.interval == 0 and step + 1 < steps:
            self.choose(adapters, pool)

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        for adapter in cast(Mapping[str, MaskedDelta], dense_ones(adapters)).values():
            adapter.kept.copy_(adapter.w != 0)
            adapter.sparsify()
        if (pool := _pool(adapters)) is not None:
            pool.ids = pool.labels = None


class Pool(nn.Module):
    """Examples as ids and labels [samples, longest]; id -1 stands behind the last token."""

    ids: Tensor | None
    labels: Tensor | None

    def __init__(self, method: FishDip, model: nn.Module):
        super().__init__()
        self.__dict__["model"] = model
        for key in ("ids", "labels"):
            self.register_buffer(key, torch.full((method.samples, method.longest), -1, dtype=torch.int32))

    @property
    def model(self) -> nn.Module:
        """The model that the examples are shown."""
        return self.__dict__["model"]

    def fill(self, rows: Rows) -> None:
        """Keep these examples."""
        assert self.ids is not None
        assert self.labels is not None
        for number, (ids, labels) in enumerate(rows):
            kept = min(ids.shape[1], self.ids.shape[1])
            self.ids[number, :kept], self.labels[number, :kept] = ids[0, :kept].int(), labels[0, :kept].int()

    def hardest(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return the examples with the highest loss by trained token, at most `count`, in that order."""
        assert self.ids is not None
        assert self.labels is not None
        rows = [
            (ids[ids >= 0][None].long(), labels[ids >= 0][None].long())
            for ids, labels in zip(self.ids, self.labels, strict=True)
        ]
        rows = [(ids, labels) for ids, labels in rows if bool((labels[:, 1:] >= 0).any())]
        with torch.no_grad():
            losses = [float(surprise(self.model, *row)) / int((row[1][:, 1:] >= 0).sum()) for row in rows]
        order = sorted(range(len(rows)), key=lambda number: -losses[number])
        return [rows[number] for number in order[:count]]


def _pool(adapters: Mapping[str, Adapter]) -> Pool | None:
    pool = next(iter(adapters.values())).shared
    return pool if pool is not None and pool.ids is not None else None
