"""The directions in which the inputs vary most: EVA (Paischer et al. 2024, arXiv:2410.07170)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftkit.layers.probing import moments
from peftkit.methods.inits import INITS, Measured


def eva(adapter: Any, weight: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first right singular vectors of the inputs as A, and B zero: the base is as it was.

    They are the eigenvectors of the inputs' second moments [in, in]; the paper finds them batch by batch. It also
    spreads the ranks over the weights; here each keeps its own.
    """
    vectors = torch.linalg.eigh(seen)[1].T.flip(0)
    return vectors[: adapter.A.shape[0]], torch.zeros_like(adapter.B)


INITS.add("eva", Measured(moments, eva))
