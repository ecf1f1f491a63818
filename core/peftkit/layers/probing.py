"""What a model shows on examples before training: gradients of weights, their squares, and moments of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.layers.sparse import DenseDelta, SparseDelta
from peftkit.ports.adapter import Adapter

Rows = Iterable[tuple[Tensor, Tensor]]
"""Examples as ids [1, T] and labels [1, T]."""


class Probed(SparseDelta):
    """A sparse change that can carry a dense probe [out, in] of zeros, whose gradient is that of the weight.

    The probe gives the gradient for every storage format of the weight, for a part of a fused one and for a tied one.
    """

    probe: Tensor | None = None

    def delta(self, weight: Tensor) -> Tensor:
        change = super().delta(weight)
        return change if self.probe is None else change + self.probe

    @contextmanager
    def probed(self) -> Iterator[Tensor]:
        """Give the tensor [out, in] whose gradient is that of the weight."""
        shape = (self.site.outputs, self.site.inputs)
        self.probe = torch.zeros(shape, device=self.values.device, requires_grad=True)
        try:
            yield self.probe
        finally:
            self.probe = None


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
    model: nn.Module, adapters: Mapping[str, Probed] | Mapping[str, DenseDelta], rows: Rows
) -> dict[str, Tensor] | None:
    """Return the empirical Fisher information [out, in] of each site's weight in fp32, or None without examples."""
    training, count = model.training, 0
    with ExitStack() as stack:
        stack.callback(model.train, training)
        model.eval()
        probes = [stack.enter_context(adapter.probed()) for adapter in adapters.values()]
        totals = [torch.zeros_like(probe, requires_grad=False) for probe in probes]
        for ids, labels in rows:
            loss = surprise(model, ids, labels)
            for total, gradient in zip(totals, torch.autograd.grad(loss, probes, allow_unused=True), strict=True):
                # A row that is short reaches no weight of what sums up longer ones.
                if gradient is not None:
                    total.addcmul_(gradient, gradient)
            count += 1
    return {key: total / count for key, total in zip(adapters, totals, strict=True)} if count else None


def surprise(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Return minus the log-probability of an example's labels, in fp32."""
    device = next(model.parameters()).device
    logits = model(input_ids=ids.to(device), use_cache=False).logits[0, :-1].float()
    return nn.functional.cross_entropy(logits, labels[0, 1:].to(device), ignore_index=-100, reduction="sum")


def moments(model: nn.Module, adapters: Mapping[str, Adapter], rows: Rows) -> dict[str, Tensor]:
    """Return the mean of x x' [in, in] over all tokens that each site reads; empty without examples."""
    totals: dict[str, Tensor] = {}
    count = 0

    def seen(key: str, module: nn.Module, given: tuple[Any, ...], y: Tensor) -> None:
        x = given[0].detach().flatten(0, -2).float()
        totals[key] = totals.get(key, 0) + x.T @ x

    with _watching(model, adapters, seen), torch.no_grad():
        for ids, _ in rows:
            model(input_ids=ids.to(next(model.parameters()).device), use_cache=False)
            count += ids.shape[1]
    return {key: total / count for key, total in totals.items()}


def gradients(model: nn.Module, adapters: Mapping[str, Adapter], rows: Rows) -> dict[str, Tensor]:
    """Return the gradient [out, in] of the mean of the examples' losses by each site's weight; empty without any."""
    totals: dict[str, Tensor] = {}
    count = 0

    def add(key: str, x: Tensor, given: Tensor) -> None:
        part = adapters[key].site.rows
        arrived = (given if part is None else part.take(given)).flatten(0, -2).float()
        totals[key] = totals.get(key, 0) + arrived.T @ x.flatten(0, -2).float()

    def seen(key: str, module: nn.Module, given: tuple[Any, ...], y: Tensor) -> None:
        # Some models run their layers several times, and all but the last time without gradients.
        if y.requires_grad:
            y.register_hook(partial(add, key, given[0].detach()))

    with _watching(model, adapters, seen):
        for ids, labels in rows:
            trained = [p for p in model.parameters() if p.requires_grad]
            torch.autograd.grad(surprise(model, ids, labels), trained, allow_unused=True)
            count += 1
    return {key: total / count for key, total in totals.items()}


def margins(model: nn.Module, adapters: Mapping[str, Adapter], rows: Rows) -> dict[str, Tensor]:
    """Return the means of each row and of each column of the empirical Fisher information of each site's weight.

    They stand one behind the other, [out + in] in fp32; empty without examples. Of the information [out, in] itself,
    the squared gradient of one example at a time is held.
    """
    totals: dict[str, Tensor] = {}
    count = 0
    for row in rows:
        for key, gradient in gradients(model, adapters, [row]).items():
            squares = gradient.square()
            totals[key] = totals.get(key, 0) + torch.cat([squares.mean(1), squares.mean(0)])
        count += 1
    return {key: total / count for key, total in totals.items()}


@contextmanager
def _watching(model: nn.Module, adapters: Mapping[str, Adapter], seen: Callable[..., None]) -> Iterator[None]:
    """Call `seen(key, module, inputs, output)` for each call of a site's module, in eval mode."""
    training = model.training
    handles = [a.site.module.register_forward_hook(partial(seen, key)) for key, a in adapters.items()]
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
