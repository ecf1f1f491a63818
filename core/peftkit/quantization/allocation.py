"""The format of each matrix within a budget of bits, so that packing loses least (Guo et al. 2023, arXiv:2311.12023).

Integer linear programming as in section 3.3 of the paper: one choice for each matrix, the bytes of all within the
budget, the sum of squared errors least.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.kernels.wide import wide
from peftkit.quantization.quantizer import QUANTIZERS, Quantizer

SAMPLE = (64, 1024)
"""The normal matrix that stands for weights which are not there."""


def candidates() -> list[Quantizer]:
    """Return the formats and options from which a budget chooses: `Quantizer.budgeted` of every format."""
    return [cls.from_options(options) for _, cls in QUANTIZERS.items() for options in cls.budgeted]


def fitting(shape: tuple[int, int], choices: Sequence[Quantizer]) -> list[bool]:
    """Say of each choice whether a weight [out, in] can be packed so."""
    fits = []
    for quantizer in choices:
        try:
            quantizer.check(shape)
        except PeftkitError:
            fits.append(False)
        else:
            fits.append(True)
    return fits


def error(weight: Tensor, quantizer: Quantizer, where: str) -> float:
    """Return |W - Q|^2 of a weight [out, in] packed so."""
    weight = weight.detach().float()
    kept = quantizer.decode(quantizer.quantize(weight, where), (weight.shape[0], weight.shape[1]))
    return float(wide((weight - kept).square()).sum())


def choose(errors: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], limit: float) -> list[int]:
    """Return for each matrix the index of its choice: the sum of sizes at most `limit`, the sum of errors least.

    A choice that a matrix cannot have has an infinite error. Raises PeftkitError where even the smallest are too large,
    or scipy is not installed.
    """
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array
    except ImportError:
        raise PeftkitError("a budget of bits is spent by scipy, which is not installed: pip install scipy.") from None
    able = [(row, column) for row, line in enumerate(errors) for column, cost in enumerate(line) if np.isfinite(cost)]
    rows = np.array([row for row, _ in able])
    cost = np.array([errors[row][column] for row, column in able])
    size = np.array([sizes[row][column] for row, column in able], dtype=float)
    smallest = sum(size[rows == row].min() for row in range(len(errors)))
    if smallest > limit:
        raise PeftkitError(f"the smallest formats take {smallest:,.0f} bytes, and the budget is {limit:,.0f}.")
    single = coo_array((np.ones(len(able)), (rows, np.arange(len(able)))), shape=(len(errors), len(able))).tocsr()
    # Both scaled to about one, where the solver's tolerances are meant to be.
    constraints = [LinearConstraint(single, 1, 1), LinearConstraint(size[None] / limit, ub=1)]
    solution = milp(
        cost / max(cost.max(), np.finfo(float).tiny),
        integrality=np.ones(len(able)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 1e-9},
    )
    if solution.x is None:
        raise PeftkitError(f"no choice of formats within the budget was found: {solution.message}")
    picked = {able[index][0]: able[index][1] for index in np.flatnonzero(solution.x > 0.5)}
    return [picked[row] for row in range(len(errors))]


@cache
def standing_in(quantizer: Quantizer) -> float:
    """Return the squared error of each weight that is normal with a variance of one, where no weight can be read."""
    sample = torch.randn(SAMPLE, generator=torch.Generator().manual_seed(0))
    return error(sample, quantizer, "the sample") / sample.numel()
