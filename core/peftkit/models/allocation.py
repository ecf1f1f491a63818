"""Bit allocation: a budget of bits per weight decides the formats of a model's linear layers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.layout import GROUPS, Layout
from peftkit.models.quantize import Quantization
from peftkit.quantization import allocation
from peftkit.quantization.quantizer import Quantizer
from peftkit.quantization.weight import shape

Held = tuple[tuple[int, int], int]
"""(out, in) of a weight, and how many of that shape there are: one, or those of a stack."""
SLACK = 1e-9
"""By what share sizes that are sums of many may be off in a comparison."""


def within(budget: float, chosen: Quantization, layout: Layout, read: Callable[[str], Tensor] | None) -> Quantization:
    """Return the formats that a budget pays for; those that stand beside it already are checked and taken."""
    if not chosen.modules:
        return allocate(budget, layout, read)
    check_allocated(budget, layout, chosen)
    return chosen


def allocate(budget: float, layout: Layout, read: Callable[[str], Tensor] | None) -> Quantization:
    """Choose a format for every linear layer and stack of the blocks: `budget` bits a weight, the least squared error.

    Counted are the packed bytes, scales included, over all these weights. The error is |W - Q|^2, without a
    low-rank pair: the official code counts what a pair of one rank leaves, for which each matrix would have to be
    decomposed once for each format. `read(path)` gives a weight [out, in], in a stack by its number behind the
    stack's name; None lets normal weights of one size stand in for them. Raises PeftkitError for a budget below the
    smallest formats.
    """
    shapes = _shapes(layout)
    choices = allocation.candidates()
    able = [allocation.fitting(size, choices) for size, _ in shapes.values()]
    packed = [[count * quantizer.size(size) for quantizer in choices] for size, count in shapes.values()]
    errors = []
    for (path, held), fits in zip(shapes.items(), able, strict=True):
        errors.append(_errors(path, held, [q if fit else None for q, fit in zip(choices, fits, strict=True)], read))
    weights = _weights(shapes)
    try:
        picked = allocation.choose(errors, packed, budget / 8 * weights)
    except PeftkitError as error:
        raise PeftkitError(f"quantization.budget: {budget:g} bits a weight cannot be met: {error}") from None
    spent = 8 * sum(line[index] for line, index in zip(packed, picked, strict=True)) / weights
    names = [choices[index].name for index in picked]
    counts = ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names)))
    logging.getLogger("peftkit").info("a budget of %g bits a weight: %s, %.4f bits in all", budget, counts, spent)
    return Quantization(None, {path: choices[index] for path, index in zip(shapes, picked, strict=True)})


def check_allocated(budget: float, layout: Layout, chosen: Quantization) -> None:
    """Refuse formats that stand beside a budget and are not what it pays for."""
    shapes, packed = _shapes(layout), chosen.choose(layout)
    left = next((path for path in shapes if path not in packed), None)
    if left is not None:
        raise PeftkitError(
            f"quantization: a budget chooses the formats of all linear layers of the blocks, and {left} has none of "
            "those that stand beside it: leave the formats out, or the budget."
        )
    spent = 8 * sum(count * packed[path].size(size) for path, (size, count) in shapes.items()) / _weights(shapes)
    if spent > budget * (1 + SLACK):
        raise PeftkitError(
            f"quantization: the formats beside the budget take {spent:.4f} bits a weight, and it is {budget:g}: leave "
            "them out, or the budget."
        )


def _errors(
    path: str,
    held: Held,
    choices: list[Quantizer | None],
    read: Callable[[str], Tensor] | None,
) -> list[float]:
    if read is None:
        count = math.prod(held[0]) * held[1]
        return [math.inf if one is None else allocation.standing_in(one) * count for one in choices]
    found = [math.inf if one is None else 0.0 for one in choices]
    for key in [path] if held[1] == 1 else [f"{path}.{number}" for number in range(held[1])]:
        weight = read(key)
        for index, one in enumerate(choices):
            found[index] += 0.0 if one is None else allocation.error(weight, one, key)
    return found


def _weights(shapes: Mapping[str, Held]) -> int:
    return sum(math.prod(size) * count for size, count in shapes.values())


def _shapes(layout: Layout) -> dict[str, Held]:
    """Return what is packed, each once."""
    shapes = {}
    for site in layout.linears:
        size = shape(site.module)
        if site.role in GROUPS["linear"] and size is not None:
            shapes[site.path] = size, 1
    return shapes | {site.id: ((site.outputs, site.inputs), site.experts) for site in layout.stacks}
