"""How much of a machine a training step uses: the operations of its products, and the rate at which products run.

A multiplication and an addition are two operations (FLOPs). The products of the model's own linear layers count, dense
or packed; those of attention and of adapters do not, which are small at the lengths and ranks of fine-tuning.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peftkit.layout import Layout
from peftkit.quantization.weight import shape

if TYPE_CHECKING:
    from peftkit.training.counts import Counts
    from peftkit.training.loop import Loop

ROWS = 512
"""Rows of the product by which the rate is measured."""
SECONDS = 0.03
"""How long the rate is measured, after a warm-up."""
LARGEST = {"cpu": 2**29}
"""Multiplications of the measured product at most; a larger matrix runs at the same rate."""
LARGEST_ELSEWHERE = 2**38
TOGETHER = {"cpu": 1}
"""Products between two looks at the clock; a GPU is waited for then."""
TOGETHER_ELSEWHERE = 20


@dataclass(frozen=True)
class Work:
    """Weights of a model's linear layers: each takes 2 FLOPs a token forward, and as many for every gradient."""

    body: int
    """Of all layers but the head."""
    passed: int
    """Of those whose inputs need a gradient: from the lowest block on in which something is trained."""
    trained: int
    """Of those that are trained themselves."""
    head: int
    head_passed: int
    head_trained: int
    matrix: tuple[int, int]
    """[in, out] of the largest of `body`, by which the rate is measured."""

    def flops(self, computed: int, predicted: int) -> int:
        """Return the FLOPs of forward and backward over `computed` tokens, with logits at `predicted` positions."""
        body = self.body + self.passed + self.trained
        head = self.head + self.head_passed + self.head_trained
        return 2 * (body * computed + head * predicted)


def work(model: nn.Module, trained: Iterable[Tensor] | None = None) -> Work:
    """Count the weights of a model to which its adapters are attached, those of `trained` among others.

    None stands for all parameters that require a gradient. Of a mixture of experts every expert counts that is a linear
    layer.
    """
    layout, lowest = Layout(model), lowest_trained(model, trained)
    heads = {site.path for site in layout.linears if site.role == "head"}
    body, head, largest = [0, 0, 0], [0, 0, 0], (0, 0)
    for path, module in layout.modules.items():
        sizes = shape(module)
        if sizes is None:
            continue
        size, weight = sizes[0] * sizes[1], module._parameters.get("weight")
        above = lowest is not None and (path in heads or _layer(layout, path) >= lowest)
        learns = weight is not None and weight.requires_grad
        sums = head if path in heads else body
        for at, counted in enumerate((True, above, learns)):
            sums[at] += size * counted
        if sums is body and size > largest[0] * largest[1]:
            largest = (sizes[1], sizes[0])
    return Work(*body, *head, matrix=largest)


def lowest_trained(model: nn.Module, trained: Iterable[Tensor] | None = None) -> int | None:
    """Return the lowest block that holds something trained; -1 for what is below all blocks, None for the head alone.

    Parameters outside of the blocks and the head count as below: the embedding, soft prompts, shared modules.
    """
    layout, own = Layout(model), None if trained is None else set(map(id, trained))
    heads = {site.path for site in layout.linears if site.role == "head" and not site.tied}
    found = [
        _layer(layout, name)
        for name, parameter in model.named_parameters()
        if (parameter.requires_grad if own is None else id(parameter) in own)
        and not any(name.startswith(f"{head}.") for head in heads)
    ]
    return min(found, default=None)


def matrix_rate(matrix: tuple[int, int], dtype: torch.dtype, device: torch.device, seconds: float = SECONDS) -> float:
    """Measure the FLOPs a second of products [512, in] x [in, out] in `dtype`, the median of what runs in `seconds`.

    The product is made smaller where it would take too long or too much memory.
    """
    inputs, outputs = matrix
    while ROWS * inputs * outputs > LARGEST.get(device.type, LARGEST_ELSEWHERE):
        inputs, outputs = (inputs // 2, outputs) if inputs > outputs else (inputs, outputs // 2)
    together = TOGETHER.get(device.type, TOGETHER_ELSEWHERE)
    # Not torch's random numbers, whose state is the run's.
    x = torch.full((ROWS, inputs), 0.5, dtype=dtype, device=device)
    weight = torch.full((inputs, outputs), 0.25, dtype=dtype, device=device)
    into = torch.empty(ROWS, outputs, dtype=dtype, device=device)

    def once() -> float:
        began = time.perf_counter()
        for _ in range(together):
            torch.mm(x, weight, out=into)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - began) / together

    with torch.no_grad():
        once()
        once()
        times = [once()]
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            times.append(once())
    return 2 * ROWS * inputs * outputs / statistics.median(times)


@dataclass(frozen=True)
class Meter:
    """Tells what share of the machine's matrix rate the products of a step took."""

    work: Work
    rate: float
    """FLOPs a second."""

    @classmethod
    def of(cls, loop: Loop) -> Meter | None:
        """Count the products of a loop's model and measure the machine, which takes some tens of milliseconds.

        None for a model without linear layers in its body.
        """
        found = work(loop.model, loop.parameters)
        if not found.body:
            return None
        return cls(found, matrix_rate(found.matrix, computes_in(loop.model, loop.precision), loop.device))

    def utilisation(self, counted: Counts, seconds: float) -> float:
        """Return the share, 1 at the most in theory, that what is `counted` took when it ran in `seconds`."""
        return self.work.flops(counted.computed, counted.predicted) / seconds / self.rate


def computes_in(model: nn.Module, precision: str) -> torch.dtype:
    """Return the dtype of the products: bf16 under autocast or where the weights are held in it."""
    if precision == "bf16":
        return torch.bfloat16
    floating = (p.dtype for p in model.parameters() if p.is_floating_point() and not p.requires_grad)
    return next(floating, torch.float32)


def _layer(layout: Layout, path: str) -> int:
    """Return the block that a path is in; -1 outside of all."""
    return next((index for index, block in enumerate(layout.blocks) if path.startswith(f"{block}.")), -1)
