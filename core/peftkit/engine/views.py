"""Two passes over one micro-batch whose adapters draw anew, and how far what they predict is apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.data.encode import IGNORED
from peftkit.engine.chunked_head import CHUNK
from peftkit.engine.outputs import HeadOutputs, WholeOutputs
from peftkit.engine.packed_batch import PackedBatch
from peftkit.objectives import Loss
from peftkit.ports.context import Context

Passed = HeadOutputs | WholeOutputs


class Views:
    """The two passes over a micro-batch, each cut off behind its body, so that it is gone back through by itself.

    A pass that is recomputed while the gradients are made draws by the number of the pass, which is why they are not
    gone back through together.
    """

    def __init__(self, context: Context, forward: Callable[[], Passed]):
        self.context = context
        self.ends: list[Tensor] = []
        self.outputs: list[Any] = []
        for view in (0, 1):
            context.view = view
            whole = forward()
            name = "hidden" if isinstance(whole, HeadOutputs) else "logits"
            self.ends.append(getattr(whole, name))
            self.outputs.append(replace(whole, **{name: self.ends[-1].detach().requires_grad_()}))
        context.view = 0

    def diverge(self, batch: PackedBatch, factor: float) -> None:
        """Add the gradients of `factor` times the divergence, summed over the predictions of the batch."""
        for start in range(0, len(batch.targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = []
            for view, outputs in enumerate(self.outputs):
                self.context.view = view
                logits.append(_logits(outputs, part))
            self.context.view = 0
            counted = (batch.targets[part] != IGNORED).to(torch.float32)
            each = counted if batch.weights is None else counted * batch.weights[part]
            (divergence(*logits) @ each * factor).backward()

    def back(self) -> None:
        """Go back through both passes with the gradients that their ends have got."""
        for view in (1, 0):
            self.context.view = view
            outputs = self.outputs[view]
            gradient = (outputs.hidden if isinstance(outputs, HeadOutputs) else outputs.logits).grad
            if gradient is not None:
                self.ends[view].backward(gradient)


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Return (KL(p, q) + KL(q, p)) / 2 [P] of the distributions of two logits [P, V]."""
    p, q = (F.log_softmax(logits.float(), -1) for logits in (one, other))
    return ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2


def add_both(views: Views, batch: PackedBatch, loss: Callable[[Any], Loss], share: float, weight: float) -> Loss:
    """Add the gradients of `share` times (the first pass's loss + `weight` times the divergence of the two)."""
    found = loss(views.outputs[0])
    (found.sum * share).backward()
    views.diverge(batch, weight * share)
    views.back()
    return found._replace(sum=found.sum.detach())


def _logits(outputs: Passed, part: slice) -> Tensor:
    if isinstance(outputs, WholeOutputs):
        return outputs.logits.flatten(0, 1)[part]
    return outputs.head.logits(outputs.hidden.flatten(0, 1).index_select(0, outputs.batch.sources[part]))
