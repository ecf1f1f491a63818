"""A uniform as in torch's linear layers, B zero: the official code of LoRA (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from peftkit.methods.inits import INITS


@INITS.register("kaiming")
def kaiming(adapter: Any) -> None:
    """Draw A [rank, in] from the Kaiming uniform distribution with a = sqrt 5 and set B [out, rank] to zero."""
    nn.init.kaiming_uniform_(adapter.A, a=math.sqrt(5))
    nn.init.zeros_(adapter.B)
