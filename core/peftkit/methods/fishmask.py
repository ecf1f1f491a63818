"""FISH Mask trains the weights with the largest Fisher information (Sung et al. 2021, arXiv:2111.09839)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from peftkit.layers.sparse import SparseDelta, entries, largest
from peftkit.layout import Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class FishMask(Targeted, name="fishmask"):
    """W + a sparse change whose values start at zero, at the weights with the largest empirical Fisher information.

    F = mean over examples of the squared gradient of log p(y | x), one example at a time: the square of a batch's mean
    gradient is another quantity. It is measured once, on the batches given to `prepare`, and the share `density` of
    all adapted weights with the largest F, over all sites together, is trained. Where no batches were given, the
    positions are spread evenly over each weight. The official code always trains the new classification head too,
    which a language model does not have.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "selection"
    paper: ClassVar[str] = "Sung et al. 2021, arXiv:2111.09839"
    summary: ClassVar[str] = (
        "Trains the few weights whose squared gradients on the data are largest, chosen once before training. "
        "Their positions and changes alone are saved."
    )
    default_learning_rate: ClassVar[float] = 0.056
    size: ClassVar[str | None] = "density"

    density: Annotated[float, Gt(0), Lt(0.5)] = 0.005
    """Share of the adapted weights that is trained."""
    samples: Annotated[int, Ge(1)] = 1024
    """Most examples on which the information is measured."""
    targets: Targets = "linear"

    def build(self, site: Site) -> Adapter:
        return Probed(site, entries(site, self.density))

    def prepare(self, model: nn.Module, adapters: Mapping[str, Adapter], batches: Iterable[Any]) -> None:
        probed = cast(Mapping[str, Probed], adapters)
        count = sum(len(adapter.values) for adapter in probed.values())
        information = fisher(model, probed, examples(batches, self.samples))
        if information is not None:
            for key, mask in largest(information, count).items():
                probed[key].choose(mask)


class Probed(SparseDelta):
    """A sparse change that can carry a dense probe [out, in] of zeros, whose gradient is that of the weight.

    The probe gives the gradient for every storage format of the weight, for a part of a fused one and for a tied one.
    """

    probe: Tensor | None = None

    def delta(self, weight: Tensor) -> Tensor:
        change = super().delta(weight)
        return change if self.probe is None else change + self.probe


def examples(batches: Iterable[Any], limit: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over at most `limit` examples of the batches, each as ids [1, T] and labels [1, T] without padding.

    No batch is asked for beyond those that are needed.
    """
    left = limit
    for batch in batches:
        taken = min(left, batch.input_ids.shape[0])
        for row in range(taken):
            real = batch.attention_mask[row].bool()
            yield batch.input_ids[row, real][None], batch.labels[row, real][None]
        left -= taken
        if left == 0:
            return


def fisher(
    model: nn.Module, adapters: Mapping[str, Probed], rows: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor] | None:
    """Return the empirical Fisher information [out, in] of each site's weight in fp32, or None without examples."""
    device = next(model.parameters()).device
    training = model.training
    for adapter in adapters.values():
        shape = (adapter.site.outputs, adapter.site.inputs)
        adapter.probe = torch.zeros(shape, device=adapter.values.device, requires_grad=True)
    probes = [cast(Tensor, adapter.probe) for adapter in adapters.values()]
    totals = [torch.zeros_like(probe, requires_grad=False) for probe in probes]
    count = 0
    model.eval()
    try:
        for ids, labels in rows:
            logits = model(input_ids=ids.to(device), use_cache=False).logits[0, :-1].float()
            loss = nn.functional.cross_entropy(logits, labels[0, 1:].to(device), ignore_index=-100, reduction="sum")
            for total, gradient in zip(totals, torch.autograd.grad(loss, probes, allow_unused=True), strict=True):
                # A row that is short reaches no weight of what sums up longer ones.
                if gradient is not None:
                    total.addcmul_(gradient, gradient)
            count += 1
    finally:
        model.train(training)
        for adapter in adapters.values():
            adapter.probe = None
    return {key: total / count for key, total in zip(adapters, totals, strict=True)} if count else None
