"""Adafactor: second moments of matrices as the product of a row and a column (Shazeer and Stern 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.optim import OPTIMIZERS


@OPTIMIZERS.register("adafactor")
class Adafactor(torch.optim.Adafactor):
    """torch's Adafactor (arXiv:1804.04235) without a first moment: of W [out, in] it keeps 4 (out + in) bytes.

    A vector's second moment stays whole. `betas` say nothing: the second decay rate after t steps is 1 - t^-0.8. The
    update is cut to a root mean square of one, and `eps` is the smallest root of a second moment. As in the paper the
    rate is at most 1 / sqrt(t). The paper multiplies it by the root mean square of a tensor, from 1e-3 on; here that
    counts from one on, because adapters start at zero and would nearly stand still there.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float):
        super().__init__([dict(group) for group in groups], eps=(eps, 1.0), foreach=False)

    @staticmethod
    def state_bytes(group: Mapping[str, Any], device: torch.device) -> int:
        """Count rows and columns of every tensor of two dimensions and more, and the squares of vectors."""
        return sum(
            4 * sum(torch.Size(shape).numel() for key, shape in _moments(parameter).items())
            for parameter in group["params"]
        )

    @staticmethod
    def state_shapes(group: Mapping[str, Any], parameter: Tensor) -> dict[str, Sequence[int]]:
        """Return those of the count of steps and of the second moment's parts."""
        return {"step": (), **_moments(parameter)}


def _moments(parameter: Tensor) -> dict[str, Sequence[int]]:
    shape = parameter.shape
    if len(shape) < 2:
        return {"variance": shape}
    return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}
