"""SparseAdapter prunes adapters once, before they are trained (He et al. 2022, arXiv:2210.04284)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.pruned import Pruned, erdos_renyi, kept
from peftkit.layout import Site
from peftkit.method import Method
from peftkit.methods.fishmask import examples
from peftkit.methods.wrapping import Wrapping
from peftkit.ports.adapter import Adapter

Gradient = Callable[[], Sequence[Tensor]]
STEP = 1e-3
"""How far the weights move along the gradient and against it for H g, as a share of their norm."""


@dataclass(frozen=True, kw_only=True)
class SparseAdapter(Wrapping, name="sparseadapter"):
    """Each matrix of an adapter keeps few entries, chosen once by a score at the start; vectors stay whole.

    `snip`: |w g| with the gradient g of the loss. `grasp`: w (H g), the change of the gradient's norm that the entry
    stands for; H g comes from a difference of gradients. `magnitude`: |w|. `erdos-renyi` keeps in each matrix a number
    as its rows plus columns, and `random` one as its size, both at random. All but the last two compare all matrices.
    A matrix that is zero at the start would score nothing, and is scored as a normal one that is as wide as the
    adapter's others, as in the paper's adapters; it starts at zero all the same. Without data it is as `random`.
    """

    family: ClassVar[str] = "pruning of adapters"
    paper: ClassVar[str] = "He et al. 2022, arXiv:2210.04284"
    summary: ClassVar[str] = (
        "Prunes the matrices of adapters before training, by a score on the data. What is left alone is trained and "
        "saved, so that wider adapters cost no more."
    )
    default_learning_rate: ClassVar[float] = 0.1

    score: Literal["snip", "grasp", "magnitude", "erdos-renyi", "random"] = "snip"
    """What chooses the entries that stay."""
    density: Annotated[float, Gt(0), Lt(1)] = 0.2
    """Share of the entries of matrices that stays."""
    large: bool = False
    """Large-Sparse: adapters 1 / density times as large as `of` says, so that as many entries stay as it has."""
    samples: Annotated[int, Ge(1)] = 64
    """Most examples on which the score is measured."""

    @cached_property
    def inner(self) -> Method:
        inner = super().inner
        if not self.large:
            return inner
        size = getattr(inner, inner.size or "", None)
        if not isinstance(size, int):
            raise PeftkitError(f"{self.name}: large: the method '{inner.name}' has no size that could be larger.")
        return replace(inner, **{str(inner.size): round(size / self.density)})

    def build(self, site: Site) -> Adapter:
        return Pruned(self.inner.build(site), self.density)

    def prepare(self, model: nn.Module, adapters: Mapping[str, Adapter], batches: Iterable[Any]) -> None:
        pruned = cast(Mapping[str, Pruned], adapters)
        shapes = {(site, key): shape for site, adapter in pruned.items() for key, shape in adapter.shapes.items()}
        count = sum(max(1, round(self.density * shape.numel())) for shape in shapes.values())
        if self.score == "random":
            return
        if self.score == "erdos-renyi":
            counts = erdos_renyi(shapes, count)
            masks = {place: kept({place: torch.rand(shapes[place])}, counts[place])[place] for place in shapes}
        else:
            scores = self._scores(model, pruned, list(examples(batches, self.samples)))
            masks = {} if scores is None else kept(scores, count)
        for site, adapter in pruned.items() if masks else ():
            adapter.choose({key: masks[site, key] for key in adapter.shapes})

    def _scores(
        self, model: nn.Module, adapters: Mapping[str, Pruned], rows: Sequence[tuple[Tensor, Tensor]]
    ) -> dict[tuple[str, str], Tensor] | None:
        """Return the score of each entry of each matrix by site and name; None where it needs data and has none."""
        if not rows and self.score != "magnitude":
            return None
        training = model.training
        model.eval()
        with ExitStack() as stack:
            probes = {
                (site, key): probe
                for site, adapter in adapters.items()
                for key, probe in stack.enter_context(adapter.probed()).items()
            }
            weights = list(probes.values())
            if self.score == "magnitude":
                found = [weight.detach().abs() for weight in weights]
            else:
                slopes = gradient(model, weights, rows)
                if self.score == "grasp":
                    slopes = along(weights, slopes, lambda: gradient(model, weights, rows))
                products = [weight.detach() * slope for weight, slope in zip(weights, slopes, strict=True)]
                found = products if self.score == "grasp" else [product.abs() for product in products]
        model.train(training)
        return dict(zip(probes, found, strict=True))


def gradient(model: nn.Module, weights: Sequence[Tensor], rows: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return the gradients of the mean loss of examples (ids [1, T], labels [1, T])."""
    device = next(model.parameters()).device
    totals, count = [torch.zeros_like(weight, requires_grad=False) for weight in weights], 0
    for ids, labels in rows:
        logits = model(input_ids=ids.to(device), use_cache=False).logits[0, :-1].float()
        loss = nn.functional.cross_entropy(logits, labels[0, 1:].to(device), ignore_index=-100, reduction="sum")
        for total, slope in zip(totals, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            if slope is not None:
                total.add_(slope)
        count += 1
    return [total / max(1, count) for total in totals]


@torch.no_grad()
def along(weights: Sequence[Tensor], slopes: Sequence[Tensor], slope_now: Gradient) -> list[Tensor]:
    """Return H g for the gradient g = `slopes`, from the gradients a short way before and behind along it."""
    norm = torch.stack([slope.norm() for slope in slopes]).norm().clamp(min=1e-12)
    size = torch.stack([weight.norm() for weight in weights]).norm()
    ends, step = [], STEP * size / norm
    for sign in (1, -2):
        for weight, slope in zip(weights, slopes, strict=True):
            weight.add_(slope * (step * sign))
        with torch.enable_grad():
            ends.append(slope_now())
    for weight, slope in zip(weights, slopes, strict=True):
        weight.add_(slope * step)
    return [(after - before) / (2 * step) for after, before in zip(*ends, strict=True)]
